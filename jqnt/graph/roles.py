"""What an operator's inputs are: data, weight, bias, and the axes that a weight's scales follow."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from onnx import TensorProto, helper

from jqnt.graph.ir import Graph, Node

__all__ = [
    "Weight",
    "data_inputs",
    "float_tensors",
    "softmax_axis",
    "summed_axis",
    "weight_of",
]


@dataclass(frozen=True)
class Weight:
    """The weight that a node reads.

    `channel_axis` is the axis of the output channels, `input_axis` that of the summed ones; both
    are counted in the weight as the node reads it, negative ones from the end. `channel_axis` is
    None where one scale per channel is no scale per output (grouped transposed convolutions).
    """

    tensor: str
    data: str
    bias: str | None
    channel_axis: int | None
    input_axis: int


_EVERY_INPUT = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "MatMul", "Gemm", "Concat", "Einsum"}
)


def weight_of(node: Node, static: Container[str]) -> Weight | None:
    """The weight of a convolution or matrix product, or None: `static` holds what depends on no
    input of the graph."""
    if node.op in ("Conv", "ConvTranspose", "Gemm") and node.inputs[1] in static:
        tensor, data = node.inputs[1], node.inputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] in static else None
        if node.op == "Gemm":
            channel = 0 if node.attrs.get("transB", 0) else 1
            return Weight(tensor, data, bias, channel, 1 - channel)
        if node.op == "Conv":
            return Weight(tensor, data, bias, 0, 1)
        grouped = node.attrs.get("group", 1) != 1
        return Weight(tensor, data, bias, None if grouped else 1, 0)
    if node.op == "MatMul":
        left, right = node.inputs
        if right in static and left not in static:
            return Weight(right, left, None, -1, -2)
        if left in static and right not in static:
            return Weight(left, right, None, -2, -1)
    return None


def data_inputs(node: Node) -> tuple[str, ...]:
    """The inputs that carry values to compute with, not settings, weights or statistics.

    Bounds of a Clip, pads, roi and scales of a Resize, normalization parameters and slopes are
    settings: no integer kernel reads them on an activation's grid.
    """
    if node.op == "Where":
        return tuple(node.inputs[1:3])
    count = len(node.inputs) if node.op in _EVERY_INPUT else 1
    if node.op == "Gemm":
        count = 2
    return tuple(name for name in node.inputs[:count] if name)


def summed_axis(node: Node, index: int) -> int | None:
    """The axis of input `index` that a convolution or matrix product sums over, or None.

    Channels for convolutions; negative axes are counted from the end.
    """
    if index > 1:
        return None
    if node.op in ("Conv", "ConvTranspose"):
        return 1 if index == 0 or node.op == "Conv" else 0
    if node.op == "MatMul":
        return -1 - index
    if node.op == "Gemm":
        flipped = bool(node.attrs.get("transB" if index else "transA", 0))
        return 1 - index if not flipped else index
    return None


_NOT_FLOAT = frozenset(
    {
        "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
        "BitwiseXor", "ConvInteger", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN",
        "Less", "LessOrEqual", "MatMulInteger", "NonZero", "Not", "Or", "QLinearConv",
        "QLinearMatMul", "QuantizeLinear", "Shape", "Size", "Xor",
    }
)  # fmt: skip
_ALWAYS_FLOAT = frozenset(
    {
        "DequantizeLinear", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip
_INDEX_OUTPUTS = frozenset({"MaxPool", "TopK", "Unique"})


def float_tensors(graph: Graph) -> frozenset[str]:
    """The tensors that hold floats, by what the graph declares and what its operators make.

    Bodies of control flow are not looked into: their nodes' outputs count as floats if one input
    is one.
    """
    floats = set(graph.params)
    for name in graph.inputs:
        info = graph.info.get(name)
        if info is None or jnp.issubdtype(info.dtype, jnp.floating):
            floats.add(name)
    floats.update(k for k, v in graph.constants.items() if jnp.issubdtype(v.dtype, jnp.floating))
    for node in graph.nodes:
        outputs = [name for name in node.outputs if name]
        if node.op in _INDEX_OUTPUTS:
            outputs = outputs[:1]
        if _makes_floats(node, floats):
            floats.update(outputs)
    return frozenset(floats)


def softmax_axis(graph: Graph, tensors: Sequence[str]) -> int | None:
    """The axis along which Softmax normalizes all of these, or None where anything else reads
    one of them."""
    readers = [graph.readers.get(tensor, ()) for tensor in tensors]
    if not all(readers) or not set(tensors).isdisjoint(graph.outputs):
        return None
    nodes = [node for several in readers for node in several]
    if any(node.op != "Softmax" for node in nodes):
        return None
    axes = {_normalized_axis(graph, node) for node in nodes}
    return axes.pop() if len(axes) == 1 else None


def _normalized_axis(graph: Graph, node: Node) -> int | None:
    """Before opset 13 Softmax normalizes all axes from `axis` on: one only if that is the last."""
    if node.since >= 13:
        return int(node.attrs.get("axis", -1))
    info, axis = graph.info.get(node.inputs[0]), int(node.attrs.get("axis", 1))
    rank = None if info is None or info.shape is None else len(info.shape)
    return -1 if axis == -1 or (rank is not None and axis == rank - 1) else None


def _makes_floats(node: Node, floats: set[str]) -> bool:
    if node.op in _NOT_FLOAT:
        return False
    if node.op in _ALWAYS_FLOAT:
        return True
    if node.op == "Cast":
        to = helper.tensor_dtype_to_np_dtype(node.attrs.get("to", TensorProto.FLOAT))
        return bool(jnp.issubdtype(to, jnp.floating))
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return value is None or bool(jnp.issubdtype(value.dtype, jnp.floating))
    if node.op == "CastLike":
        return node.inputs[1] in floats
    return any(name in floats for name in data_inputs(node))
