"""Inputs by what they are, for every operator with a weight."""

import numpy as np
import pytest
from built import built, node
from onnx import TensorProto

from jqnt.graph.ir import Node
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.roles import data_inputs, float_tensors, weight_of

CASES = [
    (Node("Conv", "n", ("x", "w", "b"), ("y",)), (0, 1, "b")),
    (Node("Conv", "n", ("x", "w"), ("y",)), (0, 1, None)),
    (Node("ConvTranspose", "n", ("x", "w", "b"), ("y",)), (1, 0, "b")),
    (Node("ConvTranspose", "n", ("x", "w"), ("y",), {"group": 2}), (None, 0, None)),
    (Node("Gemm", "n", ("x", "w", "b"), ("y",)), (1, 0, "b")),
    (Node("Gemm", "n", ("x", "w", "z"), ("y",), {"transB": 1}), (0, 1, None)),
    (Node("MatMul", "n", ("x", "w"), ("y",)), (-1, -2, None)),
    (Node("MatMul", "n", ("w", "x"), ("y",)), (-2, -1, None)),
]


@pytest.mark.parametrize(("read", "expected"), CASES)
def test_weights(read, expected):
    weight = weight_of(read, {"w", "b"})
    assert weight is not None and (weight.tensor, weight.data) == ("w", "x")
    assert (weight.channel_axis, weight.input_axis, weight.bias) == expected


@pytest.mark.parametrize(
    "read",
    [
        Node("Conv", "n", ("x", "z"), ("y",)),
        Node("MatMul", "n", ("x", "z"), ("y",)),
        Node("MatMul", "n", ("w", "b"), ("y",)),
        Node("Add", "n", ("x", "w"), ("y",)),
    ],
)
def test_no_weight(read):
    assert weight_of(read, {"w", "b"}) is None


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (Node("Clip", "n", ("x", "lo", "hi"), ("y",)), ("x",)),
        (Node("Resize", "n", ("x", "", "scales"), ("y",)), ("x",)),
        (Node("Add", "n", ("x", "z"), ("y",)), ("x", "z")),
        (Node("Concat", "n", ("a", "b", "c"), ("y",)), ("a", "b", "c")),
        (Node("Gemm", "n", ("x", "w", "b"), ("y",)), ("x", "w")),
        (Node("Where", "n", ("flag", "a", "b"), ("y",)), ("a", "b")),
        (Node("BatchNormalization", "n", ("x", "s", "b", "m", "v"), ("y",)), ("x",)),
    ],
)
def test_data(read, expected):
    assert data_inputs(read) == expected


def test_floats_are_told_from_integers_and_truth_values():
    graph, _, _ = import_onnx(
        built(
            [
                node("Shape", "x", "s"),
                node("ArgMax", "x", "i"),
                node("Cast", "i", "f", to=TensorProto.FLOAT),
                node("Greater", "x f", "g"),
                node("Where", "g x f", "h"),
                node("TopK", "h k", "v j"),
                node("Reshape", "v s", "y"),
                node("Reshape", "i s", "t"),
            ],
            {"x": ["N", 1]},
            ["y", "j", "t"],
            {"k": np.asarray([1])},
        )
    )
    floats = float_tensors(graph)
    assert {"x", "f", "h", "v", "y"} <= floats
    assert floats.isdisjoint({"s", "i", "g", "j", "t", "k"})
