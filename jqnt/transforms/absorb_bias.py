"""High-bias absorption: what a ReLU always lets through moves into the next layer's bias."""

from collections.abc import Mapping

import numpy as np

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph, Node
from jqnt.transforms.channels import Pair, equalizable_pairs
from jqnt.transforms.rewrite import fresh
from jqnt.transforms.statistics import Channel
from jqnt.types import Params

__all__ = ["absorb_bias"]


_SHIFTED = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", "Squeeze", "Identity"}
)
"""What a constant per channel passes through: f(x - c) = f(x) - c."""


def absorb_bias(
    graph: Graph,
    params: Params,
    statistics: Mapping[str, Channel],
    *,
    deviations: float = 3.0,
    padded: bool = False,
) -> tuple[Graph, Params]:
    """Nearly the same function, with smaller activations between layers that a Relu joins.

        c_i = max(0, mean_i - deviations * deviation_i);   b1 -= c,   b2 += W2 c

    `statistics` are those of the first layer's output, by its name, for the weights as they are
    now (equalize first, then measure). Exact for values above c, which all but 0.13 % of a normal
    distribution's are. A reader with padding sees zeros where c should be: it is skipped unless
    `padded`. A reader without a bias gets one. Source: Nagel et al. 2019 (DFQ), eq. 15-16.
    """
    if deviations < 0:
        raise ConfigError(f"deviations is at least 0, not {deviations}")
    params = dict(params)
    for pair in equalizable_pairs(graph, params):
        writer = next(n for n in graph.nodes if pair.first.tensor in n.inputs)
        reader = next(n for n in graph.nodes if pair.second.tensor in n.inputs)
        output = writer.outputs[0]
        ops = [node.op for node in pair.between]
        if output not in statistics or pair.first.bias is None or ops[:1] != ["Relu"]:
            continue
        if not _SHIFTED.issuperset(ops[1:]):
            continue
        if reader.op not in ("Conv", "Gemm") or (_pads(reader) and not padded):
            continue
        own = statistics[output]
        if own.mean.shape != (pair.channels,):
            raise ConfigError(
                f"the statistics of {output!r} are those of {own.mean.size} channels; it has "
                f"{pair.channels}"
            )
        c = np.maximum(0, own.mean - deviations * own.deviation)
        if not c.any():
            continue
        graph = _absorbed(graph, params, pair, writer, reader, c)
    return graph, params


def _absorbed(
    graph: Graph, params: Params, pair: Pair, writer: Node, reader: Node, c: np.ndarray
) -> Graph:
    """Changes both biases in `params`; returns the graph, where the reader may have a new one."""
    assert pair.first.bias is not None, "checked by the caller"
    first = np.asarray(params[pair.first.bias])
    beta = writer.attrs.get("beta", 1.0) if writer.op == "Gemm" else 1.0
    params[pair.first.bias] = (first - c / beta).astype(first.dtype)
    w = np.asarray(params[pair.second.tensor])
    moved = _through(pair, reader, w.astype(np.float64), np.repeat(c, pair.repeat))
    beta = reader.attrs.get("beta", 1.0) if reader.op == "Gemm" else 1.0
    if pair.second.bias is not None:
        second = np.asarray(params[pair.second.bias])
        params[pair.second.bias] = (second + moved / beta).astype(second.dtype)
        return graph
    name = fresh(f"{pair.second.tensor}_bias", set(graph.tensors))
    params[name] = moved.astype(w.dtype)
    attrs = {**reader.attrs, "beta": 1.0} if reader.op == "Gemm" else reader.attrs
    changed = reader.replace(inputs=(*reader.inputs[:2], name), attrs=attrs)
    nodes = tuple(changed if node is reader else node for node in graph.nodes)
    return graph.replace(nodes=nodes, params=(*graph.params, name))


def _through(pair: Pair, reader: Node, w: np.ndarray, c: np.ndarray) -> np.ndarray:
    """W2 c for each output channel."""
    if reader.op == "Gemm":
        alpha = reader.attrs.get("alpha", 1.0)
        return alpha * np.moveaxis(w, pair.second.input_axis, -1) @ c
    taps = w.reshape(*w.shape[:2], -1).sum(-1)
    per_row = np.repeat(c.reshape(pair.group, -1), w.shape[0] // pair.group, axis=0)
    return (taps * per_row).sum(1)


def _pads(node: Node) -> bool:
    auto = node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return node.op == "Conv" and (auto or any(node.attrs.get("pads", ())))
