"""The layers of a graph by name, as files that speak of layers and not of tensors see them."""

from dataclasses import replace

from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import Weight, weight_of

__all__ = ["layers_of"]


def layers_of(graph: Graph) -> dict[str, Weight]:
    """Node name -> what it reads, for every node with a weight; a MatMul's weight is a matrix, so
    its axes are counted from the front."""
    static = static_tensors(graph)
    found: dict[str, Weight] = {}
    for node in graph.nodes:
        read = weight_of(node, static)
        if read is None:
            continue
        if read.channel_axis is not None and read.channel_axis < 0:
            read = replace(read, channel_axis=read.channel_axis % 2, input_axis=read.input_axis % 2)
        found[node.name] = read
    return found
