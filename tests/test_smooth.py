"""Smoothing: the float function stays, ranges are shared as the paper's formula says."""

import numpy as np
import pytest
from built import built, node, reference

from jqnt.errors import ConfigError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.transforms.smooth import smooth, smoothable
from jqnt.transforms.statistics import measured_statistics

RNG = np.random.default_rng(0)


def transformer_part(residual=False):
    """LayerNorm whose output two matrix products read, and a third behind a Tanh."""
    nodes = [
        node("LayerNormalization", "x s t", "n"),
        node("MatMul", "n w1", "a"),
        node("MatMul", "n w2", "b"),
        node("Mul", "a b", "m"),
        node("Tanh", "m", "h"),
        node("MatMul", "h w3", "y"),
    ]
    if residual:
        nodes[-1:] = [node("MatMul", "h w3", "o"), node("Add", "o n", "y")]
    params = {
        "s": 10 ** RNG.uniform(-1, 1, 6),
        "t": RNG.normal(size=6),
        "w1": RNG.normal(size=(6, 8)),
        "w2": RNG.normal(size=(6, 8)),
        "w3": RNG.normal(size=(8, 6)),
    }
    return built(nodes, {"x": ["N", 5, 6]}, ["y"], params)


X = {"x": RNG.normal(size=(4, 5, 6)).astype(np.float32)}


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_the_function_stays_and_ranges_follow_the_formula(strength, insert):
    model = transformer_part()
    graph, params, _ = import_onnx(model)
    assert set(smoothable(graph, params)) == {"n", "h"}
    found = measured_statistics(graph, params, ["n", "h"], [X], axis=-1)
    largest = {name: channel.largest for name, channel in found.items()}
    new_graph, new = smooth(graph, params, largest, strength=strength, insert=insert)
    y = lower(new_graph)(new, {}, X)["y"]
    wanted = reference(model, X)["y"]
    assert np.abs(y - wanted).max() <= 1e-5 * np.abs(wanted).max()
    # max|X_j / s_j| = max|X_j|^(1 - a) max|W_j|^(1 - a)
    w = np.maximum(np.abs(params["w1"]).max(1), np.abs(params["w2"]).max(1))
    n = np.abs(np.asarray(lower(new_graph)(new, {}, X, want=("n",))["n"])).max((0, 1))
    np.testing.assert_allclose(n, (largest["n"] * w) ** (1 - strength), rtol=1e-4)
    assert ([node.op for node in new_graph.nodes].count("Mul") == 2) == insert


def test_what_cannot_be_smoothed_is_named():
    graph, params, _ = import_onnx(transformer_part(residual=True))
    assert set(smoothable(graph, params)) == {"h"}
    with pytest.raises(ConfigError, match="'n' cannot be smoothed"):
        smooth(graph, params, {"n": np.ones(6)})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        smooth(graph, params, {}, strength=2.0)
    with pytest.raises(ConfigError, match="5 channels for weights with 8"):
        smooth(graph, params, {"h": np.ones(5)}, insert=True)
