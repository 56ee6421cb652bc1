"""QuantizeLinear and DequantizeLinear nodes that an import left in the graph -> encodings."""

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node

__all__ = ["absorb"]


def absorb(graph: Graph, encodings: Encodings) -> tuple[Graph, Encodings]:
    """Both become Identity: what is quantized carries an encoding, what is dequantized had one.

    These are conversions at the graph's ends, and pairs around operators that only move codes.
    Nodes whose scale is computed, or has several values, stay as they are.
    """
    tensors = dict(encodings.tensors)
    nodes = []
    for node in graph.nodes:
        grid = _grid(node, graph)
        if grid is None:
            nodes.append(node)
            continue
        tensors.setdefault(
            node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0], grid
        )
        nodes.append(node.replace(op="Identity", inputs=node.inputs[:1], attrs={}))
    if len(tensors) == len(encodings):
        return graph, encodings
    return graph.replace(nodes=tuple(nodes)), Encodings(tensors, encodings.codes)


def _grid(node: Node, graph: Graph) -> Encoding | None:
    if node.op not in ("QuantizeLinear", "DequantizeLinear") or node.domain:
        return None
    scale, zero_point = (
        graph.constants.get(name) if name else None for name in (*node.inputs, "", "")[1:3]
    )
    if scale is None or zero_point is None or np.size(scale) != 1:
        return None
    kind = np.dtype(zero_point.dtype)
    if kind.kind not in "iu" or kind.itemsize > 2:
        return None
    fmt = Integer(8 * kind.itemsize, signed=kind.kind == "i")
    return Encoding(fmt, np.reshape(scale, ()), np.reshape(zero_point, ()))
