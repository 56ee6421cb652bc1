"""int8 ncnn models that we write, run in ncnn; tables and files back again."""

from dataclasses import replace

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import Integer
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.integer import lower as lower_integers
from jqnt.interop.ncnn import to_ncnn
from jqnt.interop.ncnn_model import dump_bin, dump_param, parse
from jqnt.interop.ncnn_table import from_ncnn_table, to_ncnn_table
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from tests.backends import ncnn_arithmetic, ncnn_outputs
from tests.built import node
from tests.quantized_case import U8, case, encoded

S8 = Integer(8, signed=True, strict=True)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _symmetric(encodings):
    """Zero points moved to zero."""
    return Encodings(
        {k: replace(e, zero_point=np.zeros_like(e.zero_point)) for k, e in encodings.items()}
    )


CASES = {
    "conv": (
        [node("Conv", "x w b", "c", pads=[1] * 4), node("Relu", "c", "y")],
        (4, 8, 14, 14),
        {"w": (16, 8, 3, 3), "b": (16,)},
    ),
    "pointwise": (
        [node("Conv", "x w b", "y", strides=[2, 2])],
        (4, 16, 12, 12),
        {"w": (24, 16, 1, 1), "b": (24,)},
    ),
    "depthwise": (
        [node("Conv", "x w b", "y", pads=[1] * 4, group=16)],
        (4, 16, 14, 14),
        {"w": (16, 1, 3, 3), "b": (16,)},
    ),
    "depthwise of few": ([node("Conv", "x w", "y", group=5)], (4, 5, 9, 9), {"w": (5, 1, 3, 3)}),
    "fully connected": (
        [node("Gemm", "x w b", "y", transB=1)],
        (300, 64),
        {"w": (60, 64), "b": (60,)},
    ),
    "matrix": ([node("MatMul", "x w", "y")], (300, 32), {"w": (32, 20)}),
    "two": (
        [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y")],
        (4, 8, 12, 12),
        {"w": (16, 8, 1, 1), "b": (16,), "v": (8, 16, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_code_is_ncnn_s(oracles, tmp_path, name):
    nodes, shape, sizes = CASES[name]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    tensors = ["r", "y"] if name == "two" else ["y"]
    for seed in range(3):
        grids = encoded(graph, params, inputs, tensors, activation=S8, weight=S8, seed=seed)
        grids = {k: e for k, e in grids.items() if k != "b"}
        encodings = _symmetric(Encodings(grids))
        layers = to_ncnn(graph, params, encodings)
        theirs = ncnn_outputs(oracles, tmp_path, layers, inputs["x"], "x", "y")
        ours = np.asarray(lower_integers(graph, params, encodings, ncnn_arithmetic())(inputs)["y"])
        assert ours.shape == theirs.shape and len(np.unique(theirs)) > 20
        assert int((ours != theirs).sum()) == 0


@pytest.mark.parametrize("name", ["digits_resnet8_folded", "digits_mbv2_folded"])
def test_whole_digits_models(data, oracles, tmp_path, name):
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    graph, params = cleanup(*fold_bn(graph, params))
    images = np.load(data / "digits_32x32.npz")["x_test"][:256]
    inputs = {graph.inputs[0]: images}
    chosen = plan(graph, target="ncnn")
    theta = calibrate(lower(graph), params, chosen, [{graph.inputs[0]: images[:128]}])
    params, encodings = freeze(graph, params, bind(theta, chosen))
    layers = to_ncnn(graph, params, encodings)
    (entry,), (result,) = graph.inputs, graph.outputs
    theirs = ncnn_outputs(oracles, tmp_path, layers, images, entry, result)
    ours = np.asarray(lower_integers(graph, params, encodings, ncnn_arithmetic())(inputs)[result])
    assert theirs.size == 2560 and int((ours != theirs).sum()) == 0


CONVOLUTIONS = {
    "grouped": ((2, 8, 14, 14), (12, 4, 3, 3), {"group": 2}),
    "two outputs a channel": ((2, 8, 14, 14), (16, 1, 3, 3), {"group": 8}),
    "depthwise": ((2, 16, 14, 14), (16, 1, 3, 3), {"group": 16, "pads": [1] * 4}),
    "depthwise strided": ((2, 16, 28, 28), (16, 1, 3, 3), {"group": 16, "strides": [2, 2]}),
    "depthwise uneven": ((2, 16, 20, 20), (16, 1, 3, 3), {"group": 16, "strides": [1, 2]}),
    "depthwise dilated": ((2, 16, 18, 18), (16, 1, 3, 3), {"group": 16, "dilations": [2, 2]}),
    "depthwise wide": ((2, 16, 18, 18), (16, 1, 5, 5), {"group": 16}),
    "pointwise": ((2, 16, 14, 14), (12, 16, 1, 1), {}),
}


@pytest.mark.parametrize("coded", [True, False], ids=["codes", "float"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_ties_are_broken_as_ncnn_s_kernels_break_them(oracles, tmp_path, name, coded):
    """The output's scale is the product's times a power of two, and the bias a whole number of
    products: one in eight values lies on a half, but for float32's roundings."""
    shape, size, attrs = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    scale = {k: np.float32(rng.uniform(0.01, 0.03)) for k in "xw"}
    product = scale["x"] * scale["w"]
    codes = rng.integers(-15, 16, shape).astype(np.float32)
    params = {
        "w": rng.integers(-7, 8, size).astype(np.float32) * scale["w"],
        "b": rng.integers(-200, 200, size[0]).astype(np.float32) * product,
    }
    inputs = {"x": codes * scale["x"]}
    graph, params = case([node("Conv", "x w b", "y", **attrs)], inputs, ["y"], params)
    grids = {k: Encoding(S8, s, np.int64(0)) for k, s in scale.items()}
    if coded:
        grids["y"] = Encoding(S8, np.float32(product * 8), np.int64(0))
    encodings = Encodings(grids)
    layers = to_ncnn(graph, params, encodings)
    theirs = ncnn_outputs(oracles, tmp_path, layers, inputs["x"], "x", "y")
    ours = np.asarray(lower_integers(graph, params, encodings, ncnn_arithmetic())(inputs)["y"])
    assert len(np.unique(theirs)) > 50 and int((ours != theirs).sum()) == 0


def _two(tensors=("r", "y")):
    nodes, shape, sizes = CASES["two"]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    grids = encoded(graph, params, inputs, tensors, activation=S8, weight=S8)
    return graph, params, _symmetric(Encodings({k: e for k, e in grids.items() if k != "b"}))


def test_files_read_back_are_the_layers():
    graph, params, encodings = _two()
    layers = to_ncnn(graph, params, encodings)
    back = parse(dump_param(layers), dump_bin(layers))
    assert len(back) == len(layers)
    for ours, theirs in zip(layers, back, strict=True):
        assert (ours.kind, ours.name, ours.inputs, ours.outputs) == (
            theirs.kind,
            theirs.name,
            theirs.inputs,
            theirs.outputs,
        )
        stored = {key: np.float32(value) for key, value in ours.params.items()}
        assert stored == {key: np.float32(value) for key, value in theirs.params.items()}
        for a, b in zip(ours.arrays, theirs.arrays, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, b: (t.replace("7767517", "1"), b), "line 1"),
        (lambda t, b: (t.replace("Convolution y 1", "Convolution y one"), b), "line 6"),
        (lambda t, b: (t.replace("5=1", "5=one"), b), "no key=value"),
        (lambda t, b: (t, b[:-4]), "ends 4 bytes early"),
        (lambda t, b: (t, b + b"1234"), "4 bytes are left over"),
    ],
)
def test_malformed_files(change, message):
    graph, params, encodings = _two()
    layers = to_ncnn(graph, params, encodings)
    with pytest.raises(DataError, match=message):
        parse(*change(dump_param(layers), dump_bin(layers)))


def test_what_ncnn_does_not_have():
    nodes, shape, sizes = CASES["two"]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    with pytest.raises(UnsupportedError, match="tensor 'x': ncnn's int8 grids are symmetric"):
        to_ncnn(graph, params, encoded(graph, params, inputs, ["r", "y"], activation=U8))


def test_tables_read_back_are_equal():
    graph, _, encodings = _two()
    text = to_ncnn_table(graph, encodings)
    keys = [line.split()[0] for line in text.splitlines()]
    assert keys == ["n_c_param_0", "n_y_param_0", "n_c", "n_y"]
    first = text.splitlines()[2].split()
    assert np.float32(first[1]) == np.float32(1) / encodings["x"].scale
    back = from_ncnn_table(text, graph)
    assert set(back) == {"x", "w", "r", "v"} and to_ncnn_table(graph, back) == text
    for name, encoding in back.items():
        np.testing.assert_array_max_ulp(encoding.scale, encodings[name].scale, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (("n_c ", "n_d "), "line 3, 'n_d': no such layer; did you mean .*'n_c'"),
        (("n_c_param_0 ", "n_c_param_0 -"), "positive numbers"),
        (("n_y_param_0 ", "n_y_param_0 a"), "are no numbers"),
        (("n_c_param_0", "n_y_param_0"), "'n_y_param_0': tensor 'v' has another scale"),
    ],
    ids=range(4),
)
def test_malformed_tables(change, message):
    graph, _, encodings = _two()
    with pytest.raises(DataError, match=message):
        from_ncnn_table(to_ncnn_table(graph, encodings).replace(change[0], change[1], 1), graph)
