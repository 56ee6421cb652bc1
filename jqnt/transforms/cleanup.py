"""Removes what computes nothing, and brings matrix products to one form: the same function."""

import numpy as np

from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import weight_of
from jqnt.transforms.rewrite import fresh, prune, rename_reads
from jqnt.types import Params

__all__ = ["cleanup"]


def cleanup(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """The same function in fewer words; the names of inputs and outputs stay.

    - Identity and Dropout (at inference) go, and so does what no output depends on.
    - Equal constants become one.
    - Gemm: alpha goes into the weight, beta into the bias (both params with one reader).
    - A bias that several nodes read becomes one param for each, since each has a scale of its own.
    """
    graph, params = prune(graph, params)
    graph = _without_copies(graph)
    graph = _one_of_each_constant(graph)
    graph, params = _plain_gemm(graph, params)
    graph, params = _own_biases(graph, params)
    return prune(graph, params)


def _copies(graph: Graph, node: Node) -> bool:
    if node.domain or not node.inputs[0]:
        return False
    if node.op == "Identity":
        return True
    if node.op != "Dropout":
        return False
    mask = node.outputs[1] if len(node.outputs) > 1 else ""
    if mask and (mask in graph.readers or mask in graph.outputs):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    # A training mode that is computed could be true.
    known = training in graph.constants and not np.any(graph.constants[training])
    return not training or known


def _without_copies(graph: Graph) -> Graph:
    """Reads of a copy become reads of its source; a copy that is an output hands on its name."""
    source: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = rename_reads(node, source)
        if _copies(graph, node) and node.outputs[0] not in graph.outputs:
            source[node.outputs[0]] = node.inputs[0]
        else:
            nodes.append(node)
    graph = graph.replace(nodes=tuple(nodes))
    for node in graph.nodes:
        if not _copies(graph, node):
            continue
        inner, outer = node.inputs[0], node.outputs[0]
        maker = graph.producer.get(inner)
        if maker is not None and inner not in graph.outputs:
            graph = _renamed(graph, inner, outer, without=node)
    return graph


def _renamed(graph: Graph, old: str, new: str, without: Node) -> Graph:
    """`old` is called `new`, and the node that made `new` from it is gone."""
    nodes = []
    for node in graph.nodes:
        if node.name == without.name:
            continue
        node = rename_reads(node, {old: new})
        if old in node.outputs:
            node = node.replace(outputs=tuple(new if o == old else o for o in node.outputs))
        nodes.append(node)
    info = {new if k == old else k: v for k, v in graph.info.items() if k != new}
    return graph.replace(nodes=tuple(nodes), info=info)


def _one_of_each_constant(graph: Graph) -> Graph:
    first: dict[tuple, str] = {}
    same: dict[str, str] = {}
    for name, value in graph.constants.items():
        value = np.asarray(value)
        key = (value.dtype.str, value.dtype.name, value.shape, value.tobytes())
        kept = first.setdefault(key, name)
        if kept != name and name not in graph.outputs:
            same[name] = kept
    return graph.replace(nodes=tuple(rename_reads(node, same) for node in graph.nodes))


def _plain_gemm(graph: Graph, params: Params) -> tuple[Graph, Params]:
    params, nodes = dict(params), []
    for node in graph.nodes:
        if node.op == "Gemm" and not node.domain:
            attrs = dict(node.attrs)
            for key, index in (("alpha", 1), ("beta", 2)):
                factor = attrs.get(key, 1.0)
                name = node.inputs[index] if len(node.inputs) > index else ""
                alone = len(graph.readers.get(name, ())) == 1 and node.inputs.count(name) == 1
                if factor != 1.0 and name in params and alone and name not in graph.outputs:
                    value = np.asarray(params[name])
                    params[name] = (value * np.float64(factor)).astype(value.dtype)
                    attrs[key] = 1.0
            node = node.replace(attrs=attrs)
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)), params


def _own_biases(graph: Graph, params: Params) -> tuple[Graph, Params]:
    static = static_tensors(graph)
    params, nodes, used = dict(params), [], set()
    taken = {*graph.tensors}
    for node in graph.nodes:
        weight = weight_of(node, static)
        if weight is not None and weight.bias in params:
            if weight.bias in used:
                name = fresh(weight.bias, taken)
                taken.add(name)
                params[name] = params[weight.bias]
                node = node.replace(inputs=(*node.inputs[:2], name))
            used.add(weight.bias)
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes), params=tuple(params)), params
