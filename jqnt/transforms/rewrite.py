"""What every transform needs: new names, renamed reads, and the removal of what nobody reads."""

from collections.abc import Collection, Mapping

from jqnt.graph.ir import Graph, Node, captured
from jqnt.types import Params

__all__ = ["fresh", "prune", "rename_reads"]


def fresh(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of name_1, name_2, ... that is not taken."""
    if name not in taken:
        return name
    return next(n for i in range(1, len(taken) + 2) if (n := f"{name}_{i}") not in taken)


def rename_reads(node: Node, names: Mapping[str, str]) -> Node:
    """`node` reading names[x] wherever it, or a body of it, read x of the outer graph."""
    changed = [name for name in (*node.inputs, *captured(node)) if name in names]
    if not changed:
        return node
    attrs = {
        k: _rename_body(v, names) if isinstance(v, Graph) else v for k, v in node.attrs.items()
    }
    return node.replace(inputs=tuple(names.get(name, name) for name in node.inputs), attrs=attrs)


def prune(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Without the nodes, params and constants that no output depends on."""
    needed = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.update((*node.inputs, *captured(node)))
    made = needed.union(graph.inputs)
    graph = graph.replace(
        nodes=tuple(reversed(nodes)),
        params=tuple(name for name in graph.params if name in needed),
        constants={k: v for k, v in graph.constants.items() if k in needed},
        info={k: v for k, v in graph.info.items() if k in made},
    )
    return graph, {name: params[name] for name in graph.params}


def _rename_body(body: Graph, names: Mapping[str, str]) -> Graph:
    """A body sees the outer names that it does not define itself."""
    own = set(body.tensors)
    outer = {old: new for old, new in names.items() if old not in own}
    return body.replace(
        nodes=tuple(rename_reads(node, outer) for node in body.nodes),
        outputs=tuple(outer.get(name, name) for name in body.outputs),
    )
