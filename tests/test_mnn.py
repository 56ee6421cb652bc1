"""MNN's compression parameters: what its converter makes of them runs as we emulate it."""

import json
import subprocess

import numpy as np
import onnx
import pytest

from jqnt.encodings import Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.integer import lower as lower_integers
from jqnt.interop.mnn import from_mnn, to_mnn
from tests.built import node
from tests.conftest import ROOT
from tests.quantized_case import S8, U8, case, encoded

CASES = {
    "conv": (
        [node("Conv", "x w b", "y", pads=[1] * 4)],
        (2, 8, 14, 14),
        {"w": (16, 8, 3, 3), "b": (16,)},
    ),
    "pointwise": (
        [node("Conv", "x w b", "y")],
        (2, 16, 12, 12),
        {"w": (24, 16, 1, 1), "b": (24,)},
    ),
    "depthwise": (
        [node("Conv", "x w b", "y", pads=[1] * 4, group=16)],
        (2, 16, 14, 14),
        {"w": (16, 1, 3, 3), "b": (16,)},
    ),
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


@pytest.mark.parametrize("name", CASES)
def test_codes_are_mnn_s(oracles, tmp_path, name):
    graph, params, encodings, inputs = _model(name, weight=S8)
    model, document = to_mnn(graph, params, encodings)
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps(document))
    np.save(tmp_path / "x.npy", inputs["x"])
    command = [oracles, ROOT / "tests" / "oracle_mnn.py", "m.onnx", "m.json", "x.npy", "y.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "y.npy")
    ours = np.asarray(lower_integers(graph, params, encodings, "mnn")(inputs)["y"])
    assert ours.shape == theirs.shape and len(np.unique(theirs)) > 20
    codes = np.abs(np.rint((theirs - ours) / encodings["y"].scale))
    if name == "depthwise":
        assert codes.max() <= 1 and (codes > 0).mean() < 0.005
    else:
        assert int((codes != 0).sum()) == 0


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
    with pytest.raises(UnsupportedError, match="no convolution with input, weight and output"):
        to_mnn(graph, params, encoded(graph, params, inputs, [], activation=S8))
