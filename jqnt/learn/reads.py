"""The layers of a graph whose rounding can be learned: which node reads which weight, where."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import sole_reader, static_tensors
from jqnt.graph.roles import weight_of
from jqnt.learn.layer import Layer, layer_of

__all__ = ["Read", "reads"]


@dataclass(frozen=True, eq=False)
class Read:
    """A node that multiplies the activation `data` with the stored tensor `weight`.

    `position` is the node's place in the graph. `bias` is a parameter that is added to the
    output and to nothing else, `beta` what it is multiplied by.
    """

    position: int
    node: Node
    layer: Layer
    weight: str
    data: str
    bias: str | None
    beta: float = 1.0


def reads(graph: Graph, shapes: Mapping[str, Any], weights: Collection[str]) -> tuple[Read, ...]:
    """The reads of `weights`, in the graph's order; `shapes` has every tensor's shape.

    Between a weight and its reader may lie Identity and Transpose nodes.
    """
    static = static_tensors(graph)
    found = []
    for position, node in enumerate(graph.nodes):
        role = weight_of(node, static)
        if role is None or role.data in static:
            continue
        weight, perm = _stored(graph, role.tensor, weights, len(shapes[role.tensor].shape))
        if weight not in weights:
            continue
        layer = layer_of(node, role.tensor, tuple(shapes[role.tensor].shape), perm)
        bias = _bias(graph, node, role.bias, shapes)
        beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        found.append(Read(position, node, layer, weight, role.data, bias, beta))
    return tuple(found)


def _stored(
    graph: Graph, tensor: str, weights: Collection[str], rank: int
) -> tuple[str, tuple[int, ...]]:
    """The tensor in `weights` that `tensor` is, and the transposition on the way from it."""
    perm = tuple(range(rank))
    while tensor not in weights:
        node = graph.producer.get(tensor)
        if node is None or node.op not in ("Identity", "Transpose"):
            break
        if node.op == "Transpose":
            step = node.attrs.get("perm", tuple(reversed(range(rank))))
            perm = tuple(int(step[axis]) for axis in perm)
        tensor = node.inputs[0]
    return tensor, () if perm == tuple(range(rank)) else perm


def _bias(graph: Graph, node: Node, bias: str | None, shapes: Mapping[str, Any]) -> str | None:
    """The bias parameter: the third input, or what an Add after a MatMul adds."""
    if node.op == "MatMul" and (add := sole_reader(graph, node.outputs[0])) is not None:
        others = [name for name in add.inputs if name != node.outputs[0]]
        bias = others[0] if add.op == "Add" and len(others) == 1 else None
    if bias not in graph.params or sole_reader(graph, bias) is None:
        return None
    # A bias is one number per output channel; anything else that an Add adds is not.
    return bias if len(shapes[bias].shape) == 1 else None
