"""Chains of operators: who alone reads a tensor, and which nodes a target computes as one."""

from collections.abc import Sequence
from dataclasses import dataclass

from jqnt.graph.ir import Graph, Node

__all__ = ["Chain", "Group", "fuse", "sole_reader", "static_tensors"]


@dataclass(frozen=True)
class Chain:
    """Operators that follow one another: step i is any of `ops[i]`.

    With `joins` the last operator may also read another activation (a residual Add).
    """

    ops: tuple[tuple[str, ...], ...]
    joins: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that are computed as one, in order; only the last one's output leaves it."""

    nodes: tuple[Node, ...]

    @property
    def head(self) -> Node:
        """The node that computes; the others only finish its result."""
        return self.nodes[0]

    @property
    def output(self) -> str:
        """The tensor that leaves the group."""
        return next(name for name in self.nodes[-1].outputs if name)


def sole_reader(graph: Graph, tensor: str) -> Node | None:
    """The one node that reads `tensor`, once; None for a graph output and for any other case."""
    readers = graph.readers.get(tensor, ())
    if tensor in graph.outputs or len(readers) != 1 or readers[0].inputs.count(tensor) != 1:
        return None
    return readers[0]


def static_tensors(graph: Graph) -> frozenset[str]:
    """Params, constants, and what is computed from these alone."""
    static = {*graph.params, *graph.constants}
    random = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial", "Dropout")
    for node in graph.nodes:
        reads = [name for name in node.inputs if name]
        if reads and static.issuperset(reads) and not node.op.startswith(random):
            static.update(name for name in node.outputs if name)
    return frozenset(static)


def fuse(graph: Graph, chains: Sequence[Chain]) -> tuple[Group, ...]:
    """Every node in exactly one group, ordered by each group's last node.

    The longest chain that fits wins. A tensor inside a group has one reader and is no output of
    the graph; what the later nodes of a group read beside it is static, unless the chain joins.
    """
    static = static_tensors(graph)
    by_length = sorted(chains, key=lambda chain: -len(chain.ops))
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    taken: set[int] = set()
    groups = []
    for node in graph.nodes:
        if id(node) in taken:
            continue
        nodes = (node,)
        for chain in by_length:
            if (found := _follow(graph, node, chain, static, taken)) is not None:
                nodes = found
                break
        taken.update(id(n) for n in nodes)
        groups.append(Group(nodes))
    return tuple(sorted(groups, key=lambda group: position[id(group.nodes[-1])]))


def _follow(
    graph: Graph, head: Node, chain: Chain, static: frozenset[str], taken: set[int]
) -> tuple[Node, ...] | None:
    if head.op not in chain.ops[0]:
        return None
    nodes = [head]
    for i, ops in enumerate(chain.ops[1:], start=1):
        tensor = nodes[-1].outputs[0]
        node = sole_reader(graph, tensor)
        if node is None or node.op not in ops or id(node) in taken:
            return None
        others = [name for name in node.inputs if name and name != tensor]
        joined = chain.joins and i == len(chain.ops) - 1
        if not joined and not static.issuperset(others):
            return None
        nodes.append(node)
    return tuple(nodes)
