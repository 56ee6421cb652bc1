"""Moments against the reconstruction error computed directly in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.graph.ir import Node
from jqnt.learn.gram import accumulate, best_bias, centred, quadratic, zero_moments
from jqnt.learn.layer import layer_of, matrix, patches, tensor

CASES = {
    "dense": ((6, 4, 3, 3), (3, 4, 7, 7), {"pads": (1, 1, 1, 1)}),
    "depthwise": ((8, 1, 3, 3), (3, 4, 7, 7), {"group": 4, "strides": (2, 2)}),
    "grouped": ((6, 2, 3, 3), (3, 4, 7, 7), {"group": 2}),
}


def setting(case):
    shape, x_shape, attrs = CASES[case]
    layer = layer_of(Node("Conv", "n", ("x", "w"), ("y",), attrs), "w", shape)
    keys = jax.random.split(jax.random.key(1), 4)
    w = jax.random.normal(keys[0], shape)
    delta = 0.1 * jax.random.normal(keys[1], shape)
    batches = []
    for key in jax.random.split(keys[2], 2):
        exact = 1 + jax.random.normal(key, x_shape)
        batches.append((exact, exact + 0.05 * jax.random.normal(keys[3], x_shape)))
    m = matrix(layer, w)
    moments = zero_moments(*m.shape)
    for exact, lossy in batches:
        moments = accumulate(layer, moments, w, exact, lossy)
    return layer, w, delta, batches, moments


def output64(layer, x, w):
    p = np.concatenate(patches(layer, x), -1).astype(np.float64)
    return np.einsum("sgk,gok->sgo", p, np.asarray(matrix(layer, w), np.float64))


def differences(case):
    layer, w, delta, batches, moments = setting(case)
    found = [output64(layer, a, w) - output64(layer, b, w + delta) for a, b in batches]
    return np.concatenate(found), matrix(layer, delta), moments


@pytest.mark.parametrize("case", CASES)
def test_the_quadratic_is_the_error(case):
    found, delta, moments = differences(case)
    np.testing.assert_allclose(quadratic(moments, delta), (found**2).sum(0), rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_about_the_mean_it_is_what_the_best_bias_leaves(case):
    found, delta, moments = differences(case)
    np.testing.assert_allclose(best_bias(moments, delta), found.mean(0), rtol=1e-3, atol=1e-4)
    left = ((found - found.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(quadratic(centred(moments), delta), left, rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_signal_and_count(case):
    layer, w, _, batches, moments = setting(case)
    y = np.concatenate([output64(layer, exact, w) for exact, _ in batches])
    np.testing.assert_allclose(moments.signal, (y**2).sum(0), rtol=1e-5)
    assert moments.count == len(y)


def test_the_derivative_is_that_of_the_error():
    layer, w, delta, batches, moments = setting("dense")
    grad = jax.grad(lambda d: quadratic(moments, matrix(layer, d)).sum())(delta)
    p = [np.concatenate(patches(layer, b), -1).astype(np.float64) for _, b in batches]
    r = [output64(layer, b, w + delta) - output64(layer, a, w) for a, b in batches]
    expected = 2 * sum(np.einsum("sgo,sgk->gok", ri, pi) for ri, pi in zip(r, p, strict=True))
    np.testing.assert_allclose(
        grad, tensor(layer, jnp.asarray(expected, jnp.float32)), rtol=1e-3, atol=1e-3
    )
