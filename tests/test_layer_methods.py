"""GPTQ, sequential MSE, AdaQuant, FlexRound: the papers' formulas, any granularity, gains."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_reconstruct import calibrated
from test_rounding import KEY, LAYER, error64, problem

from jqnt.formats import Granularity
from jqnt.freeze import freeze
from jqnt.graph.ir import Node
from jqnt.learn.gptq import gptq
from jqnt.learn.gram import accumulate, quadratic, zero_moments
from jqnt.learn.layer import layer_of, matrix
from jqnt.learn.output_error import least_output_error
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.straight import adaquant, flexround
from jqnt.plan import bind
from jqnt.quantizers import Affine

METHODS = {
    "gptq": gptq,
    "gptq asymmetric": functools.partial(gptq, asymmetric=True),
    "seqmse": least_output_error(),
    "adaquant": functools.partial(adaquant, steps=200),
    "flexround": functools.partial(flexround, steps=200),
}
GRANULARITIES = (Granularity(), Granularity(0), Granularity(1), Granularity(1, 5))
# Straight-through training knows no granularity: its quantizer does.
PAIRS = (
    *((method, g) for method in ("gptq", "seqmse") for g in GRANULARITIES),
    ("gptq asymmetric", Granularity(0)),
    ("adaquant", Granularity(1, 5)),
    ("flexround", Granularity()),
)


def rounded_by(method, moments, w, quantizer):
    found = METHODS[method](LAYER, moments, w, quantizer, key=KEY)
    return np.asarray(found.quantizer(found.weight), np.float64)


@functools.cache
def granular(granularity):
    moments, w, _, x, lossy = problem(0, 3, granularity=Granularity(0))
    shape = granularity.scale_shape(w.shape)
    scale = jnp.max(jnp.abs(granularity.groups(w)), -1).reshape(shape) / 3
    grid = Affine(scale, jnp.zeros(shape), jnp.float32(3), granularity=granularity)
    return moments, w, grid, x, lossy


@pytest.mark.parametrize(("method", "granularity"), PAIRS, ids=str)
def test_better_than_nearest_on_any_granularity(method, granularity):
    moments, w, quantizer, x, lossy = granular(granularity)
    near = error64(x, lossy, w, quantizer(w)).sum()
    assert error64(x, lossy, w, rounded_by(method, moments, w, quantizer)).sum() < 0.95 * near


def surgeon64(h, w, scale, low, high):
    """Optimal brain quantization (Frantar et al. 2023, eq. 2-3): the inverse of the Hessian of
    what is left, made smaller by one elimination an input; float64, one row at a time."""
    inverse = np.linalg.inv(h)
    rest, found = w.copy(), np.zeros_like(w)
    for k in range(len(h)):
        found[:, k] = np.clip(np.rint(rest[:, k] / scale), low, high) * scale
        rest -= np.outer((rest[:, k] - found[:, k]) / inverse[k, k], inverse[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return found


@pytest.mark.parametrize("by_activity", [False, True])
def test_gptq_is_optimal_brain_quantization(by_activity):
    moments, w, quantizer, _, lossy = problem(1, 4)
    gram = lossy.T @ lossy
    h = gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    order = np.argsort(-np.diag(gram)) if by_activity else np.arange(len(gram))
    w64, scale = np.asarray(w, np.float64), np.asarray(quantizer.scale, np.float64)
    expected = np.empty_like(w64)
    expected[:, order] = surgeon64(h[np.ix_(order, order)], w64[:, order], scale, -8, 7)
    found = gptq(LAYER, moments, w, quantizer, by_activity=by_activity)
    np.testing.assert_allclose(quantizer(found.weight), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-4, atol=1e-6)


def test_gptq_of_inputs_that_are_zero():
    moments, w, quantizer, _, _ = problem(2, 4)
    dead = jnp.arange(12) == 3
    gram = jnp.where(dead[:, None] | dead[None], 0, moments.gram)
    found = gptq(LAYER, replace(moments, gram=gram), w, quantizer)
    assert np.isfinite(found.weight).all()
    np.testing.assert_allclose(found.weight[:, 3], quantizer(w)[:, 3], rtol=1e-6)


def test_seqmse_finds_the_best_of_its_candidates():
    """All candidates in float64, for scales per channel and per tensor."""
    tenths = least_output_error(10, 0.1)
    for granularity in (Granularity(0), Granularity()):
        moments, w, quantizer, x, lossy = granular(granularity)
        found = np.asarray(tenths(LAYER, moments, w, quantizer, key=KEY).quantizer.scale)
        errors = []
        for i in range(1, 11):
            trial = replace(quantizer, scale=jnp.asarray(quantizer.scale) * i / 10)
            errors.append(error64(x, lossy, w, trial(w)))
        table = np.array(errors) if granularity.axis == 0 else np.sum(errors, 1, keepdims=True)
        best = np.asarray(quantizer.scale) * (1 + table.argmin(0)) / 10
        np.testing.assert_allclose(np.broadcast_to(found, best.shape), best, rtol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_seqmse_is_never_worse(granularity):
    moments, w, quantizer, x, lossy = granular(granularity)
    near, found = (
        error64(x, lossy, w, r) for r in (quantizer(w), rounded_by("seqmse", moments, w, quantizer))
    )
    if granularity.axis == 0:
        assert (found <= near * (1 + 1e-5)).all()
    assert found.sum() <= near.sum() * (1 + 1e-5)


def test_flexround_divides_and_rounds():
    """eq. 2 of the paper in float64, from the parts that the result is made of."""
    moments, w, quantizer, _, _ = problem(0, 3)
    found = METHODS["flexround"](LAYER, moments, w, quantizer, key=KEY)
    divisor = np.asarray(w, np.float64) / np.asarray(found.weight, np.float64)
    assert (divisor > 0).all()  # no weight changes its sign
    s1 = np.asarray(found.quantizer.scale, np.float64)[:, None]
    expected = s1 * np.clip(np.rint(np.asarray(w, np.float64) / (s1 * divisor)), -4, 3)
    off = np.abs(expected - np.asarray(found.quantizer(found.weight)))
    assert (off > 1e-5).mean() < 0.02  # ties of float32


@pytest.mark.parametrize("method", ["gptq", "seqmse", "flexround"])
def test_grouped_and_depthwise_convolutions(method):
    shape = (6, 1, 3, 3)
    layer = layer_of(Node("Conv", "n", ("x", "w"), ("y",), {"group": 6}), "w", shape)
    k = jax.random.split(jax.random.key(5), 2)
    x = jax.nn.relu(jax.random.normal(k[0], (8, 6, 8, 8)))
    w = jax.random.normal(k[1], shape)
    scale = jnp.abs(w).max((1, 2, 3)) / 3
    quantizer = Affine(scale, jnp.zeros(6), jnp.float32(3), granularity=Granularity(0))
    moments = accumulate(layer, zero_moments(*matrix(layer, w).shape), w, x, x)
    found = METHODS[method](layer, moments, w, quantizer, key=KEY)
    before, after = (
        float(quadratic(moments, matrix(layer, q - w)).sum())
        for q in (quantizer(w), found.quantizer(found.weight))
    )
    assert after < before


@pytest.mark.parametrize("method", ["gptq", "adaquant"])
def test_whole_networks_freeze_to_what_was_found(method):
    graph, params, chosen, theta, data = calibrated()
    result = reconstruct(graph, params, theta, chosen, data, METHODS[method], key=KEY)
    assert sum(e.after for e in result.layers) < sum(e.before for e in result.layers)
    frozen, encodings = freeze(graph, result.params, bind(result.theta, chosen))
    for name in ("w1", "w2", "w3", "w4"):
        w = result.theta[name](jnp.asarray(result.params[name]))
        codes = encodings[name].quantize(np.asarray(frozen[name]))
        np.testing.assert_allclose(encodings[name].dequantize(codes), w, rtol=1e-5, atol=1e-6)
