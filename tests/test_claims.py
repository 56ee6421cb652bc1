"""Small files that claim much: refused before anything is allocated."""

import numpy as np
import pytest
from onnx_graphs import model, node, reference

from jqnt.errors import ModelError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx

BIG = 2**36

CLAIMS = {
    "Range": ([node("Range", "zero big one", "r"), node("Cast", "r", "y", to=1)], "Range"),
    "Expand": ([node("Expand", "x shape", "y")], "Expand"),
    "Tile": ([node("Tile", "x shape", "y")], "Tile"),
    "Pad": ([node("Pad", "x shape", "y")], "Pad"),
    "EyeLike": ([node("ConstantOfShape", "many", "c"), node("EyeLike", "c", "y")], "EyeLike"),
    "ConvTranspose": (
        [node("Unsqueeze", "x two", "u"), node("ConvTranspose", "u w", "y", strides=[BIG, 1])],
        "ConvTranspose",
    ),
    "AveragePool": (
        [
            node("Unsqueeze", "x two", "u"),
            node("AveragePool", "u", "y", kernel_shape=[1, BIG], pads=[0, BIG - 1, 0, BIG - 1]),
        ],
        "AveragePool",
    ),
}
NUMBERS = {
    "zero": np.asarray(0), "one": np.asarray(1), "big": np.asarray(BIG), "many": np.array([2**20]),
    "shape": np.array([BIG, 2]), "two": np.array([0, 1]), "w": np.ones((2, 1, 2, 2), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_small_file_allocates_no_gigabytes(claim):
    nodes, culprit = CLAIMS[claim]
    used = {name for n in nodes for name in n.input}
    numbers = NUMBERS | ({"shape": np.array([0, BIG, 0, BIG])} if claim == "Pad" else {})
    weights = {name: value for name, value in numbers.items() if name in used}
    proto = model(nodes, {"x": [2, 2]}, ["y"], weights, opset=13 if claim != "EyeLike" else 17)
    with pytest.raises(ModelError, match=f"{culprit} node 'the_{culprit}'"):
        graph, params, _ = import_onnx(proto)
        lower(graph)(params, {}, {"x": np.ones((2, 2), np.float32)})


ARITY = [
    (node("Identity", "", "y"), "0 inputs, the operator has 1"),
    (node("Relu", "x x", "y"), "2 inputs"),
    (node("Add", "x -", "y"), "lacks input 'B'"),
    (node("Relu", "x", "y z"), "2 outputs"),
    (node("Concat", "x x", "y"), "lacks the attribute 'axis'"),
    (node("Concat", "x x", "y", axis="one"), "attribute 'axis' is no int"),
]


@pytest.mark.parametrize(("bad", "message"), ARITY)
def test_arity_and_attributes(bad, message):
    with pytest.raises(ModelError, match=f"{bad.op_type} node 'the_{bad.op_type}'.*{message}"):
        import_onnx(model([bad], {"x": [2, 2]}, ["y"]))


def test_values_beyond_32_bits_are_not_cut():
    nodes = [node("Add", "i big", "s"), node("Cast", "s", "y", to=1)]
    proto = model(nodes, {"i": [1]}, ["y"], {"big": np.array([2**40])}, types={"i": 7})
    graph, params, _ = import_onnx(proto)
    with pytest.raises(ModelError, match="'the_Add' computes with 'big', whose values need 64"):
        lower(graph)(params, {}, {"i": np.array([1])})


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_long_windows_and_long_strides(op):
    """Windows too long for slices go through another path; strides past the data are cut."""
    pads = [7, 7]
    proto = model(
        [node(op, "x", "y", kernel_shape=[100], pads=pads, strides=[2**40])],
        {"x": [1, 2, 150]},
        ["y"],
    )
    graph, params, _ = import_onnx(proto)
    x = np.random.default_rng(0).normal(size=(1, 2, 150)).astype(np.float32)
    got = lower(graph)(params, {}, {"x": x})["y"]
    proto.graph.node[0].attribute[-1].ints[0] = 1000
    np.testing.assert_allclose(got, reference(proto, {"x": x})[0], rtol=1e-5)
