"""MNN's compression parameters: what its converter makes of them runs as we emulate it."""

import json

import numpy as np
import pytest

from jqnt.encodings import Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.integer import lower as lower_integers
from jqnt.interop.mnn import from_mnn, to_mnn
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from tests.backends import mnn_outputs
from tests.built import node
from tests.quantized_case import S8, U8, case, encoded

CASES = {
    "conv": (
        [node("Conv", "x w b", "y", pads=[1] * 4)],
        (32, 8, 14, 14),
        {"w": (16, 8, 3, 3), "b": (16,)},
    ),
    "pointwise": (
        [node("Conv", "x w b", "y")],
        (32, 16, 12, 12),
        {"w": (24, 16, 1, 1), "b": (24,)},
    ),
    "depthwise": (
        [node("Conv", "x w b", "y", pads=[1] * 4, group=16)],
        (32, 16, 14, 14),
        {"w": (16, 1, 3, 3), "b": (16,)},
    ),
    "fully connected": (
        [node("Gemm", "x w b", "y", transB=1)],
        (400, 64),
        {"w": (60, 64), "b": (60,)},
    ),
    "matrix": ([node("MatMul", "x w", "y")], (400, 32), {"w": (32, 20)}),
}
POOLS = {
    "global": node("GlobalAveragePool", "c", "y"),
    "average": node("AveragePool", "c", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "whole": node(
        "AveragePool",
        "c",
        "y",
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        count_include_pad=1,
    ),
    "greatest": node("MaxPool", "c", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
}


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(name, **grids):
    nodes, shape, sizes = CASES[name]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    found = encoded(graph, params, inputs, ["y"], activation=S8, **grids)
    encodings = Encodings({k: e for k, e in found.items() if k != "b"})
    return graph, params, encodings, inputs


def _wrong(theirs, ours, scale):
    assert ours.shape == theirs.shape and len(np.unique(theirs)) > 20
    return int((np.rint((theirs - np.asarray(ours)) / scale) != 0).sum())


@pytest.mark.parametrize("name", CASES)
def test_codes_are_mnn_s(oracles, tmp_path, name):
    graph, params, encodings, inputs = _model(name, weight=S8)
    theirs = mnn_outputs(oracles, tmp_path, (graph, params, encodings), inputs["x"])
    ours = lower_integers(graph, params, encodings, "mnn")(inputs)["y"]
    assert _wrong(theirs, ours, encodings["y"].scale) == 0


@pytest.mark.parametrize("name", POOLS)
def test_pools_keep_their_grid(oracles, tmp_path, name):
    inputs = {"x": _normal(1, 8, 8, 7, 7)}
    params = {"w": _normal(2, 16, 8, 1, 1), "b": _normal(3, 16)}
    graph, params = case([node("Conv", "x w b", "c"), POOLS[name]], inputs, ["y"], params)
    found = encoded(graph, params, inputs, ["c"], activation=S8, weight=S8)
    encodings = Encodings({**{k: e for k, e in found.items() if k != "b"}, "y": found["c"]})
    theirs = mnn_outputs(oracles, tmp_path, (graph, params, encodings), inputs["x"])
    ours = lower_integers(graph, params, encodings, "mnn")(inputs)["y"]
    assert _wrong(theirs, ours, encodings["y"].scale) == 0


@pytest.mark.parametrize("name", ["digits_resnet8_folded", "digits_mbv2_folded"])
def test_whole_digits_models(data, oracles, tmp_path, name):
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    graph, params = cleanup(*fold_bn(graph, params))
    images = np.load(data / "digits_32x32.npz")["x_test"][:128]
    inputs = {graph.inputs[0]: images}
    chosen = plan(graph, target="mnn")
    theta = calibrate(lower(graph), params, chosen, [inputs])
    params, encodings = freeze(graph, params, bind(theta, chosen))
    theirs = mnn_outputs(oracles, tmp_path, (graph, params, encodings), images)
    ours = np.asarray(lower_integers(graph, params, encodings, "mnn")(inputs)[graph.outputs[0]])
    assert _wrong(theirs, ours, encodings[graph.outputs[0]].scale) == 0
    labels = np.load(data / "digits_32x32.npz")["y_test"][:128]
    assert (ours.argmax(1) == labels).mean() > 0.95


def test_a_clamp_that_mnn_misplaces():
    inputs = {"x": _normal(1, 2, 8, 7, 7)}
    params = {"w": _normal(2, 8, 8, 1, 1), "v": _normal(3, 8, 8, 1, 1)}
    nodes = [
        node("Conv", "x w", "c"),
        node("Conv", "x v", "d"),
        node("Add", "c d", "s"),
        node("Relu", "s", "y"),
    ]
    graph, params = case(nodes, inputs, ["y"], params)
    grids = encoded(graph, params, inputs, ["c", "d", "y"], activation=S8, weight=S8)
    with pytest.raises(UnsupportedError, match="clamps the Relu behind it at code 0"):
        lower_integers(graph, params, grids, "mnn")


def test_a_round_trip():
    graph, params, encodings, _ = _model("conv")
    back = from_mnn(json.loads(json.dumps(to_mnn(graph, params, encodings)[1])), graph)
    assert set(back) == set(encodings)
    for name, encoding in encodings.items():
        assert back[name].format == encoding.format
        np.testing.assert_array_equal(back[name].scale, encoding.scale)
        np.testing.assert_array_equal(back[name].zero_point, encoding.zero_point)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(forGuide=True), "forGuide is true"),
        (lambda d: d["algo"][0].update(quantParams=3), r"algo\[0\].quantParams is no object"),
        (lambda d: _layer(d)["input"][0].update(name="q"), "no tensor 'q'"),
        (lambda d: _layer(d)["weight"][0].pop("scales"), "no key 'scales'"),
        (lambda d: _layer(d)["output"][0].update(scales=[0.0]), "positive and finite"),
        (lambda d: _layer(d).update(output=3), "'output' must hold a list"),
    ],
    ids=range(6),
)
def test_malformed_documents(change, message):
    graph, params, encodings, _ = _model("conv")
    document = to_mnn(graph, params, encodings)[1]
    change(document)
    with pytest.raises(DataError, match=message):
        from_mnn(document, graph)


def _layer(document):
    return document["algo"][0]["quantParams"]["layer"][0]


def test_what_mnn_does_not_have():
    nodes, shape, sizes = CASES["conv"]
    inputs = {"x": _normal(1, *shape)}
    params = {k: _normal(i, *size) for i, (k, size) in enumerate(sizes.items(), 5)}
    graph, params = case(nodes, inputs, ["y"], params)
    with pytest.raises(UnsupportedError, match="MNN's activations are int8, not uint8"):
        to_mnn(graph, params, encoded(graph, params, inputs, ["y"], activation=U8))
    with pytest.raises(UnsupportedError, match="no convolution or product with input, weight and"):
        to_mnn(graph, params, encoded(graph, params, inputs, [], activation=S8))
