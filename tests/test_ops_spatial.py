"""Convolution, pooling, normalization and resizing nodes against onnxruntime, where the backend
suite has no case: other ranks, dilations, groups, padding modes, opsets."""

import numpy as np
import pytest
from one_node import agree, floats, model, run_jqnt

from jqnt.errors import ModelError

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


CONVOLUTIONS = [
    ((2, 3, 9), (4, 3, 3), {"strides": [2], "pads": [1, 0]}),
    ((1, 4, 7, 6), (6, 2, 3, 3), {"group": 2, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ((1, 4, 7, 6), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 4, 7, 6), (8, 1, 2, 2), {"group": 4, "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 5, 5, 5), (3, 2, 2, 3, 1), {"auto_pad": "VALID"}),
    ((1, 3, 6, 6), (5, 3, 1, 1), {"strides": [2, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_conv(x, w, attrs, bias):
    inputs = {"x": normal(*x), "w": normal(*w), "b": normal(w[0]) if bias else None}
    constants = [k for k in ("w", "b") if inputs[k] is not None]
    agree(model("Conv", inputs, floats("y"), 17, constants, **attrs), inputs, 1e-4, 1e-4)


TRANSPOSED = [
    ((2, 3, 5), (3, 4, 3), {"strides": [2], "output_padding": [1]}),
    ((1, 4, 4, 3), (4, 2, 3, 3), {"group": 2, "strides": [2, 3], "pads": [1, 1, 0, 1]}),
    ((1, 4, 4, 3), (4, 1, 3, 2), {"group": 4, "strides": [2, 2], "dilations": [1, 2]}),
    ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [8, 9]}),
    ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 4, 4), (2, 3, 1, 1), {"strides": [2, 2]}),
    ((1, 2, 3, 3, 3), (2, 1, 2, 2, 2), {"strides": [2, 2, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), TRANSPOSED)
def test_conv_transpose(x, w, attrs):
    inputs = {"x": normal(*x), "w": normal(*w), "b": normal(w[1] * attrs.get("group", 1))}
    agree(model("ConvTranspose", inputs, floats("y"), 17, ["w"], **attrs), inputs, 1e-4, 1e-4)


POOLS = [
    ("MaxPool", (1, 2, 9), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("MaxPool", (1, 2, 8, 7), {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [1, 1, 0, 1]}),
    ("MaxPool", (1, 2, 5, 5, 5), {"kernel_shape": [2, 2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", (1, 2, 9), {"kernel_shape": [4], "pads": [1, 2], "count_include_pad": 1}),
    ("AveragePool", (1, 2, 8, 7), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", (1, 2, 8, 7), {"kernel_shape": [8, 7]}),
    ("LpPool", (1, 2, 8, 7), {"kernel_shape": [3, 2], "p": 3, "pads": [1, 0, 1, 1]}),
    ("GlobalAveragePool", (2, 3, 4, 5), {}),
    ("GlobalMaxPool", (2, 3, 4), {}),
    ("GlobalLpPool", (2, 3, 4, 5), {"p": 3}),
]


@pytest.mark.parametrize(("op", "shape", "attrs"), POOLS)
def test_pool(op, shape, attrs):
    inputs = {"x": normal(*shape)}
    agree(model(op, inputs, floats("y"), 18, **attrs), inputs)


def test_max_pool_indices_and_back():
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    inputs = {"x": normal(2, 3, 6, 4)}
    proto = model("MaxPool", inputs, [*floats("y"), ("i", 7)], 17, **attrs)
    agree(proto, inputs)
    y, i = run_jqnt(proto, inputs)
    back = {"y": y, "i": i}
    agree(model("MaxUnpool", back, floats("x"), 17, **attrs), back)


NORMS = [
    ("BatchNormalization", (2, 3, 4, 5), ("s", "b", "m", "v"), {"epsilon": 1e-3}),
    ("BatchNormalization", (2, 3), ("s", "b", "m", "v"), {}),
    ("InstanceNormalization", (2, 3, 4, 5), ("s", "b"), {"epsilon": 1e-3}),
    ("LRN", (2, 5, 3, 3), (), {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    ("LpNormalization", (2, 5, 3), (), {"axis": 1, "p": 1}),
    ("LpNormalization", (2, 5, 3), (), {"p": 2}),
    ("MeanVarianceNormalization", (2, 3, 4, 5), (), {}),
]


@pytest.mark.parametrize(("op", "shape", "extra", "attrs"), NORMS)
def test_norm(op, shape, extra, attrs):
    inputs = {"x": normal(*shape)}
    inputs |= {k: np.abs(normal(shape[1])) + 0.5 for k in extra}
    agree(model(op, inputs, floats("y"), 17, extra, **attrs), inputs, 1e-4, 1e-5)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm(axis):
    inputs = {"x": normal(2, 3, 4), "s": normal(*(2, 3, 4)[axis:]), "b": normal(4)}
    agree(model("LayerNormalization", inputs, floats("y", "m", "d"), 17, axis=axis), inputs, 1e-4)


MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", MODES)
@pytest.mark.parametrize("sizes", [(1, 2, 7, 9), (1, 2, 3, 2)])
def test_resize(mode, coordinates, sizes):
    inputs = {"x": normal(1, 2, 4, 5), "roi": None, "scales": None, "sizes": np.array(sizes)}
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    proto = model("Resize", inputs, floats("y"), 13, ["sizes"], **attrs)
    agree(proto, inputs, 1e-4, 1e-5)


@pytest.mark.parametrize(("op", "opset"), [("Resize", 10), ("Upsample", 9)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_resize(op, opset, mode):
    inputs = {"x": normal(1, 2, 4, 5), "s": np.array([1, 1, 2, 1.5], np.float32)}
    agree(model(op, inputs, floats("y"), opset, ["s"], mode=mode), inputs, 1e-4, 1e-5)


GEMMS = [
    ((2, 3), (3, 4), (4,), {}),
    ((3, 2), (4, 3), (2, 4), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ((2, 3), (3, 4), (1, 1), {}),
    ((2, 3), (3, 4), None, {"alpha": 3.0}),
]


@pytest.mark.parametrize(("a", "b", "c", "attrs"), GEMMS)
def test_gemm(a, b, c, attrs):
    inputs = {"a": normal(*a), "b": normal(*b), "c": None if c is None else normal(*c)}
    agree(model("Gemm", inputs, floats("y"), 17, ["b"], **attrs), inputs)


@pytest.mark.parametrize(
    ("a", "b"), [((3,), (3,)), ((2, 3), (3,)), ((3,), (5, 3, 2)), ((4, 1, 2, 3), (5, 3, 2))]
)
def test_matmul(a, b):
    inputs = {"a": normal(*a), "b": normal(*b)}
    agree(model("MatMul", inputs, floats("y"), 17), inputs)


BROKEN = [
    ("Conv", {"x": (1, 3, 4, 4), "w": (2, 2, 3, 3)}, {}, "3 channels, the weight takes 1 x 2"),
    ("Conv", {"x": (1, 2, 2, 2), "w": (2, 2, 3, 3)}, {}, "does not fit"),
    ("Conv", {"x": (1, 2, 4, 4), "w": (2, 2, 3, 3)}, {"strides": [0, 1]}, "must be positive"),
    ("Conv", {"x": (1, 2, 4, 4), "w": (2, 2, 3, 3)}, {"pads": [1, 1]}, "pads .* 4 entries"),
    ("MaxPool", {"x": (1, 2, 4, 4)}, {"kernel_shape": [2]}, "one for each of 2 axes"),
    ("MaxPool", {"x": (1, 2, 4, 4)}, {"kernel_shape": [2, 2], "auto_pad": "SOME"}, "'SOME'"),
    ("MatMul", {"x": (2, 3), "w": (4, 5)}, {}, r"float32\[2, 3\], float32\[4, 5\]"),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "message"), BROKEN)
def test_what_does_not_fit_names_the_node(op, shapes, attrs, message):
    inputs = {name: normal(*shape) for name, shape in shapes.items()}
    with pytest.raises(ModelError, match=f"{op} node 'the_node'.*{message}"):
        run_jqnt(model(op, inputs, floats("y"), 17, **attrs), inputs)
