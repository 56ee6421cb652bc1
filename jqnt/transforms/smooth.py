"""SmoothQuant: outliers of an activation move into the weights that read it."""

from collections.abc import Mapping

import numpy as np

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph, Node
from jqnt.graph.roles import Weight, weight_of
from jqnt.transforms.rewrite import fresh
from jqnt.types import Params

__all__ = ["smooth", "smoothable"]


def smoothable(graph: Graph, params: Params) -> dict[str, tuple[Node, ...]]:
    """Activations that only matrix products read, channels last -> their readers.

    The weights are params, each with one reader.
    """
    found = {}
    for tensor, readers in graph.readers.items():
        if tensor in graph.outputs or tensor in params or tensor in graph.constants:
            continue
        weights = [weight_of(node, params) for node in readers]
        if all(_is_own(graph, node, w, tensor) for node, w in zip(readers, weights, strict=True)):
            found[tensor] = readers
    return found


def smooth(
    graph: Graph,
    params: Params,
    largest: Mapping[str, np.ndarray],
    *,
    strength: float = 0.5,
    insert: bool = False,
) -> tuple[Graph, Params]:
    """The same float function, with the range of each activation shared with its weights.

        s_j = max|X_j|^strength / max|W_j|^(1 - strength);   X / s,   W_j *= s_j

    `largest` maps activations to max|X_j| per (last) channel, as `measured_statistics(axis=-1)`
    finds it. 1 / s goes into the scale and shift of the LayerNormalization that makes the tensor.
    With `insert` a Mul is put where another node makes it, which costs an operator at run time;
    else such tensors stay. Channels without range are left alone. Computed in float64.
    Raises ConfigError for a tensor that is not `smoothable`. Source: Xiao et al. 2023, eq. 4.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"the migration strength lies between 0 and 1, not {strength}")
    readers, params = smoothable(graph, params), dict(params)
    for tensor, most in largest.items():
        if tensor not in readers:
            raise ConfigError(
                f"tensor {tensor!r} cannot be smoothed: something else than matrix products with "
                f"weights of their own reads it"
            )
        norm = graph.producer.get(tensor)
        own = norm is not None and _is_affine_norm(graph, params, norm)
        if not own and not insert:
            continue
        weights = [weight_of(node, params) for node in readers[tensor]]
        s = _scales(np.asarray(most, np.float64), [w for w in weights if w], params, strength)
        for weight in weights:
            assert weight is not None, "checked by smoothable"
            w = np.asarray(params[weight.tensor])
            shape = [-1 if d == weight.input_axis % w.ndim else 1 for d in range(w.ndim)]
            params[weight.tensor] = (w.astype(np.float64) * s.reshape(shape)).astype(w.dtype)
        if own and norm is not None:
            for name in norm.inputs[1:3]:
                value = np.asarray(params[name])
                params[name] = (value.astype(np.float64) / s).astype(value.dtype)
        else:
            graph = _with_mul(graph, params, tensor, readers[tensor], 1 / s)
            readers = smoothable(graph, params) | readers
    return graph, params


def _scales(most: np.ndarray, weights: list[Weight], params: Params, strength: float) -> np.ndarray:
    """eq. 4; 1 where the activation or all its weights are zero."""
    ranges = [
        np.abs(np.moveaxis(np.asarray(params[w.tensor], np.float64), w.input_axis, 0)).max(1)
        for w in weights
    ]
    high = np.max(ranges, axis=0)
    if most.shape != high.shape:
        raise ConfigError(f"ranges of {most.size} channels for weights with {high.size} inputs")
    alive = (most > 0) & (high > 0)
    s = np.ones_like(most)
    s[alive] = most[alive] ** strength / high[alive] ** (1 - strength)
    return s


def _is_own(graph: Graph, node: Node, weight: Weight | None, tensor: str) -> bool:
    if weight is None or weight.data != tensor or node.op not in ("MatMul", "Gemm"):
        return False
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return False
    left = node.op == "MatMul" and weight.input_axis != -2
    return not left and len(graph.readers[weight.tensor]) == 1


def _is_affine_norm(graph: Graph, params: Params, node: Node) -> bool:
    """A LayerNormalization over the last axis whose scale, and shift, are its own params."""
    names = [name for name in node.inputs[1:3] if name]
    last = node.attrs.get("axis", -1) == -1 or all(np.ndim(params.get(n, 0.0)) == 1 for n in names)
    alone = all(n in params and len(graph.readers[n]) == 1 for n in names)
    return node.op == "LayerNormalization" and last and alone


def _with_mul(
    graph: Graph, params: dict, tensor: str, readers: tuple[Node, ...], factor: np.ndarray
) -> Graph:
    """A Mul by `factor` between `tensor` and its readers."""
    taken = set(graph.tensors)
    out = fresh(f"{tensor}_smooth", taken)
    name = fresh(f"{tensor}_smoothing", taken | {out})
    params[name] = factor.astype(np.float32)
    mul = Node("Mul", out, (tensor, name), (out,), since=readers[0].since)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node in readers:
            if mul not in nodes:
                nodes.append(mul)
            node = node.replace(inputs=tuple(out if n == tensor else n for n in node.inputs))
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes), params=(*graph.params, name))
