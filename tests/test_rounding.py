"""Learned rounding against the exhaustive optimum, and never worse than rounding to nearest."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.formats import Granularity
from jqnt.graph.ir import Node
from jqnt.learn.gram import accumulate, zero_moments
from jqnt.learn.layer import layer_of, matrix
from jqnt.learn.rounding import choices, learn_rounding, rounded_up
from jqnt.learn.rows import annealed, regularizer, soft_logit
from jqnt.quantizers import Affine

KEY = jax.random.key(0)
OUT, IN = 8, 12
LAYER = layer_of(Node("Gemm", "n", ("x", "w"), ("y",), {"transB": 1}), "w", (OUT, IN))


def problem(seed, bits=3, asymmetric=True, granularity=None):
    """Correlated inputs, as activations are, and a weight with a scale per channel."""
    k = jax.random.split(jax.random.key(seed), 4)
    mix = jax.random.normal(k[0], (IN, IN))
    x = jax.nn.relu(jax.random.normal(k[1], (200, IN)) @ mix)
    lossy = x + (0.2 * jax.random.normal(k[2], x.shape) if asymmetric else 0)
    w = jax.random.normal(k[3], (OUT, IN))
    granularity = granularity or Granularity(0)
    axes = tuple(d for d in range(2) if d != granularity.axis)
    scale = jnp.max(jnp.abs(w), axes) / (2 ** (bits - 1) - 1)
    quantizer = Affine(scale, jnp.zeros_like(scale), jnp.float32(bits), granularity=granularity)
    moments = accumulate(LAYER, zero_moments(1, OUT, IN), w, x, lossy)
    return moments, w, quantizer, np.asarray(x, np.float64), np.asarray(lossy, np.float64)


def error64(x, lossy, w, rounded):
    w, rounded = np.asarray(w, np.float64), np.asarray(rounded, np.float64)
    return ((x @ w.T - lossy @ rounded.T) ** 2).sum(0)


def exhaustive64(x, lossy, w, quantizer):
    """The least error of each output over all 2^12 choices, from the quadratic in float64."""
    low, high, _ = (np.asarray(a[0], np.float64) for a in choices(LAYER, w, w, quantizer))
    up = np.array(list(itertools.product((0, 1), repeat=IN)))
    gram = lossy.T @ lossy
    residual = (x - lossy) @ np.asarray(w, np.float64).T
    best = []
    for o in range(OUT):
        d = low[o] + up * (high[o] - low[o])
        error = np.einsum("nk,kl,nl->n", d, gram, d) - 2 * d @ (lossy.T @ residual[:, o])
        best.append(error.min() + (residual[:, o] ** 2).sum())
    return np.array(best)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_near_the_exhaustive_optimum_and_never_worse_than_nearest(bits):
    gaps = []
    for seed in range(3):
        moments, w, quantizer, x, lossy = problem(seed, bits)
        learned = learn_rounding(LAYER, moments, w, quantizer, key=KEY).quantizer
        found = error64(x, lossy, w, learned(w))
        best = exhaustive64(x, lossy, w, quantizer)
        assert (found <= error64(x, lossy, w, quantizer(w)) * (1 + 1e-5)).all()
        assert (found >= best * (1 - 1e-4)).all()
        gaps.append(found / best - 1)
    assert np.mean(gaps) < 0.05


@pytest.mark.parametrize("granularity", [Granularity(), Granularity(1), Granularity(0)])
def test_any_granularity_rounds_up_or_down(granularity):
    moments, w, quantizer, *_ = problem(0, 4, granularity=granularity)
    learned = learn_rounding(LAYER, moments, w, quantizer, steps=50, key=KEY).quantizer
    codes = learned.affine.codes(learned(w)) - jnp.floor(
        w / granularity.expand(quantizer.scale, w.shape)
    )
    assert set(np.unique(codes)) <= {-1.0, 0.0, 1.0}  # -1 where the largest code is clipped
    np.testing.assert_allclose(learned.affine(learned(w)), learned(w), rtol=1e-6)
    np.testing.assert_array_equal(learned.harden(w), learned(w))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.sampled_from([0, 20]))
def test_no_channel_is_worse_than_nearest(seed, steps):
    moments, w, quantizer, x, lossy = problem(seed)
    learned = learn_rounding(LAYER, moments, w, quantizer, steps=steps, key=KEY).quantizer
    nearest = error64(x, lossy, w, quantizer(w))
    assert (error64(x, lossy, w, learned(w)) <= nearest * (1 + 1e-4)).all()


def test_the_relaxation_is_the_papers():
    _, w, quantizer, *_ = problem(0)
    *_, fraction = choices(LAYER, w, w, quantizer)
    logit = soft_logit(fraction)
    np.testing.assert_allclose(
        jnp.clip(jax.nn.sigmoid(logit) * 1.2 - 0.1, 0, 1), fraction, atol=2e-3
    )
    h = jnp.linspace(0, 1, 11)
    assert regularizer(h, jnp.float32(0.1)) == 0
    for progress, beta in ((0.2, 20.0), (0.6, 11.0), (1.0, 2.0)):
        expected = (1 - np.abs(2 * np.asarray(h, np.float64) - 1) ** beta).sum()
        np.testing.assert_allclose(regularizer(h, jnp.float32(progress)), expected, rtol=1e-4)


def test_the_gradient_is_that_of_the_quadratic():
    moments, w, quantizer, *_ = problem(0)
    low, high, fraction = choices(LAYER, w, w, quantizer)
    batch = {
        "gram": moments.gram, "cross": moments.cross, "low": low, "high": high,
        "steps": jnp.float32(10), "strength": jnp.float32(0.5),
    }  # fmt: skip
    logit = soft_logit(fraction)

    def by_hand(logit):
        h = jnp.clip(jax.nn.sigmoid(logit) * 1.2 - 0.1, 0, 1)
        d = low + h * (high - low)
        error = jnp.einsum("gok,gkl,gol->", d, moments.gram, d) - 2 * jnp.sum(d * moments.cross)
        return error + 0.5 * jnp.sum(1 - jnp.abs(2 * h - 1) ** 11.0)

    value, grad = jax.value_and_grad(lambda v: annealed({"logit": v}, batch, step=6, key=KEY)[0])(
        logit
    )
    np.testing.assert_allclose(value, by_hand(logit), rtol=1e-5)
    np.testing.assert_allclose(grad, jax.grad(by_hand)(logit), rtol=1e-4, atol=1e-4)


def test_equal_shapes_share_one_program():
    for seed in range(2):
        moments, w, quantizer, *_ = problem(seed)
        learn_rounding(LAYER, moments, w, quantizer, steps=5 + seed, key=KEY)
        if seed == 0:
            before = compilations("_solved")
    assert compilations("_solved") == before >= 1


def test_rounded_up_is_exact():
    _, w, quantizer, *_ = problem(0, bits=4)
    low, high, fraction = choices(LAYER, w, w, quantizer)
    up = rounded_up(LAYER, quantizer, fraction > 0.5)
    np.testing.assert_allclose(up(w), quantizer(w), rtol=1e-6)
    np.testing.assert_allclose(
        matrix(LAYER, up(w) - w)[0], jnp.where(fraction > 0.5, high, low)[0], atol=1e-6
    )


def test_a_dead_channel_rounds_to_nearest_and_spoils_nothing():
    shape = (3, 1, 3, 3)
    layer = layer_of(Node("Conv", "n", ("x", "w"), ("y",), {"group": 3}), "w", shape)
    k = jax.random.split(KEY)
    x = jax.random.normal(k[0], (4, 3, 6, 6)).at[:, 1].set(0)
    w = jax.random.normal(k[1], shape).at[2].set(0)
    scale = jnp.where(jnp.arange(3) == 2, 1.0, 0.3)
    quantizer = Affine(scale, jnp.zeros(3), jnp.float32(3), granularity=Granularity(0))
    moments = accumulate(layer, zero_moments(3, 1, 9), w, x, x)
    learned = learn_rounding(layer, moments, w, quantizer, steps=50, key=KEY).quantizer(w)
    assert jnp.isfinite(learned).all()
    np.testing.assert_array_equal(learned[2], w[2])
