"""int8 .tflite files that we write, run in LiteRT: its codes are the emulation's."""

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import UnsupportedError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.integer import lower as lower_integers
from jqnt.interop.tflite import to_tflite
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from tests.backends import LITERT, litert_pair
from tests.built import node
from tests.quantized_case import S8, U8, case, encoded


def _mismatches(oracle, folder, graph, params, encodings, inputs, kernels, batch=None):
    images = inputs[graph.inputs[0]]
    model = graph, params, encodings
    ours, theirs = litert_pair(oracle, folder, model, images, kernels, batch)
    assert ours.shape == theirs.shape and len(np.unique(theirs)) > 10
    return int((ours != theirs).sum())


def _normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


RELU = node("Relu", "c", "y")
CASES = {
    "conv": (
        [node("Conv", "x w b", "c", pads=[1] * 4), RELU],
        (8, 8, 16, 16),
        {"w": (16, 8, 3, 3), "b": (16,)},
        ["y"],
    ),
    "pointwise": (
        [node("Conv", "x w b", "c"), RELU],
        (8, 16, 12, 12),
        {"w": (24, 16, 1, 1), "b": (24,)},
        ["y"],
    ),
    "padded and strided": (
        [node("Conv", "x w", "c", pads=[1] * 4, strides=[2, 2]), RELU],
        (8, 3, 16, 16),
        {"w": (16, 3, 3, 3)},
        ["y"],
    ),
    "depthwise": (
        [node("Conv", "x w b", "y", pads=[1] * 4, group=12)],
        (8, 12, 14, 14),
        {"w": (12, 1, 3, 3), "b": (12,)},
        ["y"],
    ),
    "fully connected": (
        [node("Gemm", "x w b", "y", transB=1)],
        (2000, 64),
        {"w": (60, 64), "b": (60,)},
        ["y"],
    ),
    "sum": (
        [node("Conv", "x w", "c"), node("Add", "x c", "y")],
        (8, 16, 16, 16),
        {"w": (16, 16, 1, 1)},
        ["c", "y"],
    ),
    "product": (
        [node("Conv", "x w", "c"), node("Mul", "x c", "y")],
        (8, 16, 16, 16),
        {"w": (16, 16, 1, 1)},
        ["c", "y"],
    ),
    "mean": ([node("GlobalAveragePool", "x", "y")], (32, 64, 7, 7), {}, ["y"]),
    "mean of an even number": ([node("GlobalAveragePool", "x", "y")], (64, 64, 4, 6), {}, ["y"]),
}


@pytest.mark.parametrize("kernels", LITERT)
@pytest.mark.parametrize("name", CASES)
def test_every_code_is_litert_s(oracles, tmp_path, name, kernels):
    nodes, shape, sizes, tensors = CASES[name]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    for seed, grid in enumerate((U8, S8)):
        encodings = encoded(graph, params, inputs, tensors, activation=grid, seed=seed)
        assert _mismatches(oracles, tmp_path, graph, params, encodings, inputs, kernels) == 0


MEANS = {
    "channels": ((8, 12, 7, 9), [1], 1),
    "channels away": ((8, 12, 7, 9), [1], 0),
    "height": ((8, 12, 8, 9), [2], 1),
    "width": ((8, 12, 7, 10), [-1], 1),
    "space away": ((8, 12, 6, 9), [3, 2], 0),
    "channels and height": ((8, 12, 7, 9), [1, 2], 1),
    "all but the batch": ((240, 12, 4, 6), [1, 2, 3], 0),
    "tokens": ((8, 50, 24), [1], 0),
    "features": ((8, 50, 24), [2], 1),
    "of a matrix": ((64, 24), [1], 0),
}


@pytest.mark.parametrize("kernels", LITERT)
@pytest.mark.parametrize("name", MEANS)
def test_means_over_any_axes(oracles, tmp_path, name, kernels):
    """Grids of their own and shared ones; simple ratios of scales put many means on halves."""
    shape, axes, keep = MEANS[name]
    inputs = {"x": _normal(1, *shape) + np.float32(0.3)}
    nodes = [node("ReduceMean", "x", "y", axes=axes, keepdims=keep)]
    graph, params = case(nodes, inputs, ["y"], {})
    for seed, (grid, ratios) in enumerate({U8: (None, 2 / 3), S8: (1, 1 / 3)}.items()):
        x, y = encoded(graph, params, inputs, ["y"], activation=grid, seed=seed).tensors.values()
        for ratio in ratios:
            if ratio is not None:
                y = Encoding(grid, x.scale * np.float32(ratio), y.zero_point)
            encodings = Encodings({"x": x, "y": y})
            found = _mismatches(oracles, tmp_path, graph, params, encodings, inputs, kernels)
            assert found == 0


RESIZES = {
    "twice": ((9, 11), (18, 22)),
    "broken ratios": ((9, 11), (13, 30)),
    "smaller": ((17, 13), (6, 9)),
    "one row": ((12, 5), (1, 8)),
}


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("name", RESIZES)
def test_linear_resizing(oracles, tmp_path, name, mode):
    before, after = RESIZES[name]
    graph, params, inputs = _resized(before, after, mode)
    for grid in (U8, S8):
        x = encoded(graph, params, inputs, [], activation=grid)["x"]
        encodings = Encodings({"x": x, "y": x})
        assert _mismatches(oracles, tmp_path, graph, params, encodings, inputs, "ref") == 0


def _resized(before, after, mode):
    inputs = {"x": _normal(1, 4, 6, *before)}
    attrs = {"mode": "linear", "coordinate_transformation_mode": mode}
    sizes = {"sizes": np.int64([4, 6, *after])}
    return (*case([node("Resize", "x - - sizes", "y", **attrs)], inputs, ["y"], sizes), inputs)


def test_resizing_that_runs_out_of_pixels():
    """Its steps are rounded to 2^-10, and the reference kernel reads past the end."""
    graph, params, inputs = _resized((3, 3), (2000, 3), "asymmetric")
    x = encoded(graph, params, inputs, [])["x"]
    run = lower_integers(graph, params, Encodings({"x": x, "y": x}), "tflite-reference")
    with pytest.raises(UnsupportedError, match=r"Resize 'n_y'.*run out of the 3 pixels"):
        run(inputs)


@pytest.mark.parametrize("kernels", LITERT)
def test_moving_codes_to_another_grid(oracles, tmp_path, kernels):
    inputs = {"x": _normal(1, 8, 16, 32, 32)}
    nodes = [node("Relu", "x", "r"), node("Relu", "r", "y")]
    graph, params = case(nodes, inputs, ["y"], {})
    tensors = dict(encoded(graph, params, inputs, ["y"]).tensors)
    tensors["r"] = Encoding(U8, np.float32(tensors["x"].scale * 0.7), np.int64(0))
    tensors["y"] = Encoding(U8, tensors["y"].scale, np.int64(0))
    found = _mismatches(oracles, tmp_path, graph, params, Encodings(tensors), inputs, kernels)
    assert found == 0


@pytest.mark.parametrize("kernels", LITERT)
@pytest.mark.parametrize("name", ["digits_resnet8_folded", "digits_mbv2_folded"])
def test_whole_digits_models(data, oracles, tmp_path, name, kernels):
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    graph, params = cleanup(*fold_bn(graph, params))
    images = np.load(data / "digits_32x32.npz")["x_test"][:256]
    inputs = {graph.inputs[0]: images}
    chosen = plan(graph, target="tflite")
    theta = calibrate(lower(graph), params, chosen, [{graph.inputs[0]: images[:128]}])
    params, encodings = freeze(graph, params, bind(theta, chosen))
    assert _mismatches(oracles, tmp_path, graph, params, encodings, inputs, kernels, batch=64) == 0


def test_mobilenet_is_tensorflow_s(data):
    """A published int8 model, read as QDQ; outputs of TensorFlow Lite 2.21's reference kernels."""
    graph, params, encodings = import_onnx(
        data / "models" / "imagenet_mobilenetv2_10_int8_qdq.onnx"
    )
    known = np.load(data / "mobilenetv2_int8_tflite_reference.npz")
    run = lower_integers(graph, params, encodings, "tflite-reference")
    wrong = 0
    for image, expected in zip(known["images"], known["tflite_reference_output"], strict=True):
        ours = run({"input": image[None]}, integers=True)["Identity"]
        wrong += int((np.asarray(ours)[0] != expected).sum())
    assert wrong == 0


def test_what_tflite_does_not_have():
    inputs = {"x": _normal(1, 2, 4, 6, 6)}
    graph, params = case([node("LeakyRelu", "x", "y")], inputs, ["y"], {})
    with pytest.raises(UnsupportedError, match="LeakyRelu node 'n_y' has no int8 kernel"):
        to_tflite(graph, params, encoded(graph, params, inputs, ["y"]))
    graph, params = case(
        [node("Conv", "x w", "y", group=2)], inputs, ["y"], {"w": _normal(2, 4, 2, 1, 1)}
    )
    with pytest.raises(UnsupportedError, match="full or depthwise"):
        to_tflite(graph, params, encoded(graph, params, inputs, ["y"]))
    graph, params = case([node("ReduceMean", "x", "y", axes=[2], keepdims=0)], inputs, ["y"], {})
    with pytest.raises(UnsupportedError, match=r"'n_y'.*another order in TFLite's layout"):
        to_tflite(graph, params, encoded(graph, params, inputs, ["y"]))
