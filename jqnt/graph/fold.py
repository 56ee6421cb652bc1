"""What depends on constants only is computed at import; what is left is params or constants."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.graph.claims import check_total
from jqnt.graph.ir import Graph, Node
from jqnt.graph.lower import run_node
from jqnt.ops.registry import find

__all__ = ["fold", "split"]

_SETTINGS: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}
"""Operator -> the float inputs that act as attributes, so that they are no weights."""

_MASK_READERS = frozenset({"Add", "Clip", "Equal", "Greater", "Less", "Max", "Min", "Sub", "Where"})
"""Operators in whose operands an infinity makes sense."""

_GRIDS = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""What they read is quantized, so they are lifted into encodings or stay."""

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def fold(graph: Graph, tensors: Mapping[str, np.ndarray]) -> tuple[Graph, dict[str, np.ndarray]]:
    """Nodes that read constants only become tensors; Identity of a tensor becomes its copy.

    Float tensors that a node reads as data may be trained, so what depends on them stays; those
    that decide a shape or act as a setting are folded. Raises ModelError where a small file
    makes gigabytes so.
    """
    known = dict(tensors)
    held, made = sum(value.size for value in tensors.values()), 0
    weights = _trainable(graph, known)

    def visit(graph: Graph) -> Graph:
        nonlocal made
        nodes = []
        for node in graph.nodes:
            bodies = {k: visit(v) for k, v in node.attrs.items() if isinstance(v, Graph)}
            if bodies:
                node = node.replace(attrs={**node.attrs, **bodies})
            elif node.op == "Identity" and not node.domain and node.inputs[0] in known:
                known[node.outputs[0]] = known[node.inputs[0]]
                if node.inputs[0] in weights:
                    weights.add(node.outputs[0])
                continue
            elif _foldable(node, known, weights):
                values = [known[name] if name else None for name in node.inputs]
                results = run_node(node, values, held)
                made += sum(np.size(result) for result in results)
                check_total(node, made, held)
                known.update(zip((o for o in node.outputs if o), results, strict=False))
                continue
            nodes.append(node)
        return graph.replace(nodes=tuple(nodes))

    return visit(graph), known


def split(
    graph: Graph, tensors: Mapping[str, np.ndarray], initializers: frozenset[str]
) -> tuple[Graph, dict[str, Any]]:
    """Params and constants: the float tensors that are data, and the others; unread ones go.

    Raises ModelError for a weight that is not finite.
    """
    weights = _trainable(graph, tensors)
    params, constants = {}, {}
    read = {*graph.readers, *graph.outputs}
    for name, value in tensors.items():
        if name not in read:
            continue
        if name in weights:
            if _finite(value):
                params[name] = value
                continue
            readers = {node.op for node in graph.readers.get(name, ())}
            fills = not np.isnan(value).any() and readers <= _MASK_READERS
            if name in initializers and not fills:
                raise ModelError(f"weight {name!r} holds NaN or infinity")
        constants[name] = value
    return graph.replace(params=tuple(params), constants=constants), params


def _finite(value: np.ndarray) -> bool:
    base = value[(slice(1),) * value.ndim] if not any(value.strides) else value
    return bool(np.isfinite(base.astype(np.float32) if base.itemsize < 2 else base).all())


def _trainable(graph: Graph, tensors: Mapping[str, np.ndarray]) -> set[str]:
    """The float tensors of rank one or more that reach no setting and decide no shape."""
    nodes = list(_all_nodes(graph))
    constant = set(tensors)
    for node in nodes:
        if node.inputs and constant.issuperset(n for n in node.inputs if n) and _plain(node):
            constant.update(node.outputs)
    settings: set[str] = set()
    for node in reversed(nodes):
        positions = (*find(node).static, *(() if node.domain else _SETTINGS.get(node.op, ())))
        settings.update(node.inputs[i] for i in positions if i < len(node.inputs))
        if settings.intersection(node.outputs) and node.op not in ("Shape", "Size"):
            settings.update(constant.intersection(node.inputs))
    return {
        name
        for name, value in tensors.items()
        if name not in settings
        and value.ndim
        and value.size
        and value.dtype.itemsize > 1
        and jnp.issubdtype(value.dtype, jnp.floating)
    }


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, Graph):
                yield from _all_nodes(body)
        yield node


def _plain(node: Node) -> bool:
    bodies = any(isinstance(value, Graph) for value in node.attrs.values())
    return not bodies and node.op not in _RANDOM


def _foldable(node: Node, known: Mapping[str, np.ndarray], weights: set[str]) -> bool:
    names = [name for name in node.inputs if name]
    if not names or not _plain(node) or any(name not in known for name in names):
        return False
    if node.op in _GRIDS and known[names[0]].ndim:
        return False
    return node.op in ("Shape", "Size") or weights.isdisjoint(names)
