"""Batch norm in training: batch moments, moving averages, folding into scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node

import jqnt
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.learn.method import Method
from jqnt.transforms.batch_norm import batch_statistics, statistics
from jqnt.transforms.fold_bn_to_scale import fold_bn_to_scale

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(6, 3, 3, 3)),
    "gamma": np.array([0.5, -1.5, 1.0, -0.2, 2.0, 0.0]),
    "beta": RNG.normal(size=6),
    "mean": RNG.normal(size=6),
    "var": RNG.uniform(0.5, 2, size=6),
    "head": RNG.normal(size=(4, 6)),
}
NODES = [
    node("Conv", "x w", "a", pads=[1] * 4),
    node("BatchNormalization", "a gamma beta mean var", "n", epsilon=1e-3),
    node("Relu", "n", "r"),
    node("GlobalAveragePool", "r", "p"),
    node("Flatten", "p", "f"),
    node("Gemm", "f head", "y", transB=1),
]
X = RNG.normal(size=(16, 3, 6, 6)).astype(np.float32)
BATCHES = [{"x": X[:8]}, {"x": X[8:]}]
RULES = (
    jqnt.Rule(role="weight", format=jqnt.Integer(4, True, strict=True), granularity="channel"),
    jqnt.Rule(role="activation", format="uint8"),
)


@pytest.fixture(scope="module")
def network():
    graph, params, _ = jqnt.import_onnx(built(NODES, {"x": ["N", 3, 6, 6]}, ["y"], WEIGHTS))
    plan = jqnt.plan(graph, RULES)
    return graph, params, plan, jqnt.calibrate(jqnt.lower(graph), params, plan, BATCHES)


def moments(a):
    a = np.asarray(a, np.float64)
    return a.mean((0, 2, 3)), a.var((0, 2, 3))


def test_batch_moments_and_their_moving_averages(network):
    graph, params, _, _ = network
    assert statistics(graph, params) == ("mean", "var")
    moving = batch_statistics(graph, params, momentum=0.8)
    found = jqnt.lower(moving.graph)(
        params, {}, {"x": X}, want=("a", "n", *moving.updates.values())
    )
    mean, var = moments(found["a"])
    a = np.asarray(found["a"], np.float64)
    shape = (1, 6, 1, 1)
    normal = (a - mean.reshape(shape)) / np.sqrt(var + 1e-3).reshape(shape)
    expected = normal * WEIGHTS["gamma"].reshape(shape) + WEIGHTS["beta"].reshape(shape)
    np.testing.assert_allclose(found["n"], expected, rtol=1e-4, atol=1e-4)
    for name, value in (("mean", mean), ("var", var)):
        next_value = 0.8 * WEIGHTS[name] + 0.2 * value
        np.testing.assert_allclose(found[moving.updates[name]], next_value, rtol=1e-5)
    folded, kept = jqnt.fold_bn(graph, params)
    with pytest.raises(ConfigError, match="no batch normalization with its own statistics"):
        batch_statistics(folded, kept)


@pytest.mark.parametrize("norm", ["kept", "batch"])
def test_training_leaves_or_follows_the_statistics(network, norm):
    graph, params, plan, theta = network
    trained, _ = jqnt.qat(
        graph, params, theta, plan, BATCHES, params, steps=30, batch_size=8,
        method=Method(norm=norm), key=jax.random.key(0),
    )  # fmt: skip
    assert np.any(trained["w"] != params["w"]) and np.any(trained["gamma"] != params["gamma"])
    for name in ("mean", "var"):
        np.testing.assert_equal(np.array_equal(trained[name], params[name]), norm == "kept")


def test_folding_into_scales_keeps_codes_and_function(network):
    """Negative and zero gains among them: the codes change their sign, nothing else."""
    graph, params, _, theta = network
    before = jqnt.lower(graph)(params, {"w": theta["w"]}, {"x": X})["y"]
    folded, kept, moved = fold_bn_to_scale(graph, params, theta)
    assert all(n.op != "BatchNormalization" for n in folded.nodes)
    after = jqnt.lower(folded)(kept, {"w": moved["w"]}, {"x": X})["y"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    # The plan of the folded graph speaks of the same tensors, and adds the new bias.
    chosen = jqnt.plan(folded, RULES)
    assert set(moved) == set(chosen.specs)
    codes = np.asarray(theta["w"].codes(jnp.asarray(params["w"])))
    flipped = np.asarray(moved["w"].codes(jnp.asarray(kept["w"])))
    sign = np.sign(WEIGHTS["gamma"]).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(flipped, codes * sign)
    gain = np.abs(WEIGHTS["gamma"]) / np.sqrt(WEIGHTS["var"] + 1e-3)
    assert set(jqnt.bind(moved, chosen)) > set(moved)
    np.testing.assert_allclose(moved["w"].scale[:5], (theta["w"].scale * gain)[:5], rtol=1e-5)


def test_what_cannot_be_folded_is_named(network):
    graph, params, _, theta = network
    q = theta["w"]
    loose = q.replace(strict=False, scale=q.scale * 0.3)
    with pytest.raises(
        UnsupportedError, match="'w': channel 1 has a negative gain and the code -8"
    ):
        fold_bn_to_scale(graph, params, {**theta, "w": loose})
    whole = q.replace(scale=q.scale[0], zero_point=jnp.float32(0), granularity=jqnt.Granularity())
    with pytest.raises(UnsupportedError, match="cannot take one gain per output channel"):
        fold_bn_to_scale(graph, params, {**theta, "w": whole})
