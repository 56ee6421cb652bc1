"""Folds batch normalization at inference into the convolution or matrix product before it."""

import numpy as np

from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import sole_reader
from jqnt.graph.roles import Weight, weight_of
from jqnt.transforms.rewrite import fresh, prune
from jqnt.types import Params

__all__ = ["fold_bn"]


def fold_bn(graph: Graph, params: Params) -> tuple[Graph, Params]:
    """Conv, ConvTranspose or Gemm followed by BatchNormalization becomes the former alone.

        g = scale / sqrt(var + epsilon)
        W' = W * g (along the output channels),   b' = (b - mean) * g + B

    Only where nobody else reads what lies between. A bias is made where there was none, named
    after the weight; the folded node gives the normalization's output name. A weight that
    another node reads too is copied first. Computed in float64. Source: Jacob et al. 2018,
    section 3.2.
    """
    params = dict(params)
    taken = {*graph.tensors}
    readers = {name: len(nodes) for name, nodes in graph.readers.items()}
    nodes = {node.name: node for node in graph.nodes}
    for norm in graph.nodes:
        if norm.op != "BatchNormalization" or norm.domain or norm.attrs.get("training_mode", 0):
            continue
        node = graph.producer.get(norm.inputs[0])
        if node is None or sole_reader(graph, norm.inputs[0]) is not norm:
            continue
        weight = weight_of(node, params)
        if weight is None or not _foldable(node, weight, norm, params):
            continue
        factor, bias = _folded(node, weight, norm, params)
        names = list(node.inputs[:2])
        if readers[weight.tensor] > 1 or weight.tensor in graph.outputs:
            readers[weight.tensor] -= 1
            names[1] = fresh(weight.tensor, taken)
            taken.add(names[1])
        value = np.asarray(params[weight.tensor])
        params[names[1]] = (value * factor).astype(value.dtype)
        name = weight.bias
        if name is None or readers[name] > 1 or name in graph.outputs:
            name = fresh(weight.bias or _bias_name(names[1]), taken)
            taken.add(name)
        params[name] = bias.astype(value.dtype)
        nodes[node.name] = node.replace(
            inputs=(*names, name),
            outputs=norm.outputs[:1],
            attrs={**node.attrs, "beta": 1.0} if node.op == "Gemm" else node.attrs,
        )
        del nodes[norm.name]
    graph = graph.replace(
        nodes=tuple(nodes[n.name] for n in graph.nodes if n.name in nodes), params=tuple(params)
    )
    return prune(graph, params)


def _foldable(node: Node, weight: Weight, norm: Node, params: Params) -> bool:
    """A dynamic or wrongly shaped bias or statistic stays as it is."""
    has_bias = len(node.inputs) > 2 and node.inputs[2]
    if has_bias and weight.bias is None:
        return False
    if len([o for o in norm.outputs if o]) != 1 or node.op == "MatMul":
        return False
    return all(name in params for name in norm.inputs[1:])


def _folded(
    node: Node, weight: Weight, norm: Node, params: Params
) -> tuple[np.ndarray, np.ndarray]:
    """(g in a shape that broadcasts against the weight, b')."""
    scale, shift, mean, var = (np.asarray(params[n], np.float64) for n in norm.inputs[1:5])
    gain = scale / np.sqrt(var + norm.attrs.get("epsilon", 1e-5))
    bias = np.zeros_like(gain)
    if weight.bias is not None:
        bias = np.broadcast_to(np.asarray(params[weight.bias], np.float64), gain.shape)
        bias = bias * (node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0)
    shape = np.shape(params[weight.tensor])
    if node.op == "ConvTranspose":
        # The weight is (in, out / group, ...); group k holds the k-th share of both.
        group = node.attrs.get("group", 1)
        per_input = np.repeat(gain.reshape(group, shape[1]), shape[0] // group, axis=0)
        factor = per_input.reshape(shape[:2] + (1,) * (len(shape) - 2))
    else:
        factor = gain.reshape([-1 if d == weight.channel_axis else 1 for d in range(len(shape))])
    return factor, (bias - mean) * gain + shift


def _bias_name(weight: str) -> str:
    stem, dot, last = weight.rpartition(".")
    return f"{stem}.bias" if dot and last == "weight" else f"{weight}_bias"
