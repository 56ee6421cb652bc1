"""Tuning to a device: another arithmetic with other biases and scales, found again."""

import jax
import numpy as np
import pytest

from jqnt.encodings import Encodings
from jqnt.errors import DataError
from jqnt.graph.lower import lower
from jqnt.integer import lower as lower_integers
from jqnt.learn.feedback import tune_to_device
from jqnt.thaw import thaw
from tests.built import node
from tests.quantized_case import case, encoded

NODES = [
    node("Conv", "x w b", "h", pads=[1, 1, 1, 1]),
    node("Relu", "h", "r"),
    node("Flatten", "r", "f"),
    node("Gemm", "f v c", "y", transB=1),
]


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(per_channel):
    inputs = {"x": _normal(1, 128, 2, 5, 5)}
    params = {"w": _normal(2, 4, 2, 3, 3), "b": _normal(3, 4)}
    params |= {"v": _normal(4, 6, 100), "c": _normal(5, 6)}
    graph, params = case(NODES, inputs, ["y"], params)
    found = encoded(graph, params, inputs, ["r", "y"], per_channel=per_channel)
    found = Encodings({**found.tensors, "f": found["r"]})
    return graph, jax.tree.map(np.asarray, params), found, inputs


def _other(params, encodings, factors):
    """A device whose first layer has other biases and requantizes by another factor."""
    tensors, params = dict(encodings.tensors), dict(params)
    for name in ("w", "b"):
        e = tensors[name]
        shape = (-1, *[1] * (np.ndim(params[name]) - 1))
        tensors[name] = type(e)(e.format, e.scale * factors, e.zero_point, e.granularity)
        full = np.broadcast_to(factors, len(params[name])).reshape(shape)
        params[name] = (params[name] * full).astype(np.float32)
    params["b"] = params["b"] + np.asarray([0.3, -0.4, 0.2, -0.5], np.float32)
    return params, Encodings(tensors)


@pytest.mark.parametrize("per_channel", [False, True])
def test_tuning_finds_what_the_device_does(per_channel):
    graph, params, encodings, inputs = _model(per_channel)
    factors = np.asarray([1.06, 0.95, 1.03, 0.97] if per_channel else 1.05, np.float32)
    theirs = _other(params, encodings, factors)
    device = lower_integers(graph, *theirs, "tflite-reference")(inputs, want=("r", "y"))
    device = {name: np.asarray(value).ravel() for name, value in device.items()}

    tuned, found, rows = tune_to_device(graph, params, encodings, [inputs], device)

    first = rows[0]
    step = float(encodings["r"].scale)
    assert first.tensor == "r" and first.kept and first.before > step
    assert first.after < 0.5 * step < first.before / 2
    np.testing.assert_allclose(found["w"].scale, theirs[1]["w"].scale, rtol=0.01)
    np.testing.assert_allclose(tuned["b"], theirs[0]["b"], atol=2 * step)
    codes = found["w"].quantize(tuned["w"])
    np.testing.assert_array_equal(codes, encodings["w"].quantize(params["w"]))

    # Other data: the integers of the tuned model are nearer to the device's than they were.
    fresh = {"x": _normal(9, 128, 2, 5, 5)}
    want = np.asarray(lower_integers(graph, *theirs, "tflite-reference")(fresh)["y"])
    off = [
        np.abs(np.asarray(lower_integers(graph, *own)(fresh)["y"]) - want).mean()
        for own in ((params, encodings), (tuned, found))
    ]
    assert off[1] < 0.25 * off[0], off


def test_a_device_that_agrees_changes_nothing():
    graph, params, encodings, inputs = _model(True)
    device = lower(graph)(params, thaw(encodings), inputs, want=("r", "y"))
    device = {name: np.asarray(value) for name, value in device.items()}
    tuned, found, rows = tune_to_device(graph, params, encodings, [inputs], device)
    assert not any(row.kept for row in rows)
    assert found is encodings and all(tuned[name] is params[name] for name in params)


def test_wrong_outputs_are_told():
    graph, params, encodings, inputs = _model(True)
    with pytest.raises(DataError, match="no encoded tensor behind a layer"):
        tune_to_device(graph, params, encodings, [inputs], {"x": inputs["x"]})
    with pytest.raises(DataError, match="'r' has 7 values"):
        tune_to_device(graph, params, encodings, [inputs], {"r": np.zeros(7)})
