"""Which graph inputs must be known numbers before anything is traced."""

import math
from collections.abc import Iterator, Sequence

from jqnt.graph.ir import Graph, Node, captured
from jqnt.ops.registry import find

__all__ = ["shape_inputs"]


def shape_inputs(graph: Graph) -> tuple[str, ...]:
    """The graph inputs that decide a shape or the course of control flow, directly or by
    arithmetic; control flow is decided only where scalars alone decide it."""
    scalars = _scalars(graph)
    deciding: set[str] = set()

    def visit(nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            for body in node.attrs.values():
                if isinstance(body, Graph):
                    if deciding.intersection(node.outputs):
                        deciding.update(body.outputs)
                    visit(body.nodes)
            entry = find(node)
            at = [node.inputs[i] for i in entry.settings if i < len(node.inputs)]
            deciding.update(scalars.intersection(at))
            deciding.update(node.inputs[i] for i in entry.static if i < len(node.inputs))
            if (
                node.op not in ("Shape", "Size")
                and not entry.eager
                and deciding.intersection(node.outputs)
            ):
                deciding.update(name for name in node.inputs if name)

    visit(graph.nodes)
    return tuple(name for name in graph.inputs if name in deciding)


def _scalars(graph: Graph) -> set[str]:
    """The tensors that follow from constants, shapes and scalar inputs alone."""
    known = set(graph.constants)
    for name in graph.inputs:
        info = graph.info.get(name)
        if info is None or info.shape is None:
            continue
        sizes = [d for d in info.shape if isinstance(d, int)]
        if len(sizes) == len(info.shape) and math.prod(sizes) == 1:
            known.add(name)
    for node in _all_nodes(graph):
        reads = [name for name in (*node.inputs, *captured(node)) if name]
        if node.op in ("Shape", "Size") or known.issuperset(reads):
            known.update(out for out in node.outputs if out)
    return known


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, Graph):
                yield from _all_nodes(body)
        yield node
