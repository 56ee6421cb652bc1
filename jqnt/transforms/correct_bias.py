"""Analytic bias correction: what weight quantization shifts on average, from statistics alone."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy import special

from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import sole_reader
from jqnt.graph.roles import Weight, weight_of
from jqnt.transforms.bounds import clip_bounds
from jqnt.transforms.rewrite import fresh
from jqnt.transforms.statistics import Channel
from jqnt.types import Params, QParams

__all__ = ["clipped_mean", "correct_bias"]


_MEANS = frozenset({"GlobalAveragePool", "Flatten", "Reshape", "Squeeze", "Identity"})
"""What keeps the mean of a channel, if it keeps the channels (which their number tells)."""


def correct_bias(
    graph: Graph, params: Params, qparams: QParams, statistics: Mapping[str, Channel]
) -> tuple[Graph, Params]:
    """Biases without the mean error that the weights' quantizers make: b -= (W~ - W) E[x].

    E[x] follows in closed form from `statistics` of the tensor before the activation function
    (`bn_statistics`, or measured): for x = clip(z, a, b) of normal z it is `clipped_mean`, Relu
    being a = 0, b = inf. A layer whose input is none of these stays. No data are needed; the
    empirical correction is `reconstruct` with `bias`. Layers without a bias get one.
    Source: Nagel et al. 2019 (DFQ), eq. 17-19 and appendix C.
    """
    params, exact = dict(params), params
    for node in graph.nodes:
        weight = weight_of(node, exact)
        if weight is None or weight.tensor not in qparams or node.op not in ("Conv", "Gemm"):
            continue
        mean = _mean(graph, weight.data, statistics)
        if mean is None:
            continue
        w = np.asarray(exact[weight.tensor])
        error = np.asarray(qparams[weight.tensor](jax.numpy.asarray(w)), np.float64) - w
        shift = _shift(node, weight, error, mean)
        if shift is None:
            continue
        graph = _added(graph, params, node, weight, -shift)
    return graph, params


def clipped_mean(mean: np.ndarray, deviation: np.ndarray, low: float, high: float) -> np.ndarray:
    """E[clip(z, low, high)] of z ~ N(mean, deviation^2).

    With alpha, beta = (low, high - mean) / deviation, phi and Phi the normal density and
    distribution: low Phi(alpha) + high (1 - Phi(beta)) + mean (Phi(beta) - Phi(alpha))
    - deviation (phi(beta) - phi(alpha)).
    """
    sigma = np.maximum(deviation, 1e-30)
    alpha, beta = (low - mean) / sigma, (high - mean) / sigma
    below, above = special.ndtr(alpha), special.ndtr(-beta)
    density = [np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi) for t in (alpha, beta)]
    inside = mean * (1 - below - above) - sigma * (density[1] - density[0])
    ends = [0.0 if np.isinf(v) else v * p for v, p in ((low, below), (high, above))]
    return inside + ends[0] + ends[1]


def _mean(graph: Graph, tensor: str, statistics: Mapping[str, Channel]) -> np.ndarray | None:
    """E of a layer's input, if it is a known tensor behind at most Relu and clips, then a mean."""
    bounds: list[tuple[float, float]] = []
    while tensor not in statistics:
        node = graph.producer.get(tensor)
        if node is not None and node.op in _MEANS and not bounds:
            tensor = node.inputs[0]
            continue
        if node is None or node.op not in ("Relu", "Clip"):
            return None
        found = (0.0, np.inf) if node.op == "Relu" else clip_bounds(graph, node)
        if found is None:
            return None
        bounds.append(found)
        tensor = node.inputs[0]
    low = max((b[0] for b in bounds), default=-np.inf)
    high = min((b[1] for b in bounds), default=np.inf)
    own = statistics[tensor]
    return clipped_mean(own.mean, own.deviation, low, high)


def _shift(node: Node, weight: Weight, error: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """(W~ - W) E[x] for each output channel; None where the channels do not fit."""
    if node.op == "Gemm":
        if error.shape[weight.input_axis] != len(mean):
            return None
        return node.attrs.get("alpha", 1.0) * np.moveaxis(error, weight.input_axis, -1) @ mean
    group = node.attrs.get("group", 1)
    if error.shape[1] * group != len(mean):
        return None
    taps = error.reshape(*error.shape[:2], -1).sum(-1)
    return (taps * np.repeat(mean.reshape(group, -1), len(error) // group, axis=0)).sum(1)


def _added(
    graph: Graph, params: dict[str, Any], node: Node, weight: Weight, amount: np.ndarray
) -> Graph:
    """`amount` added to a bias that is the node's own, or that it gets."""
    beta = node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0
    dtype = np.asarray(params[weight.tensor]).dtype
    own = weight.bias
    if own is not None and own in params and sole_reader(graph, own) is node:
        params[own] = (np.asarray(params[own], np.float64) + amount / beta).astype(dtype)
        return graph
    if len(node.inputs) > 2 and node.inputs[2]:
        return graph  # a bias that is computed, or another layer's too
    name = fresh(f"{weight.tensor}_bias", set(graph.tensors))
    params[name] = amount.astype(dtype)
    attrs = {**node.attrs, "beta": 1.0} if node.op == "Gemm" else node.attrs
    changed = node.replace(inputs=(*node.inputs[:2], name), attrs=attrs)
    nodes = tuple(changed if n is node else n for n in graph.nodes)
    return graph.replace(nodes=nodes, params=(*graph.params, name))
