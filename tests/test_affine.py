"""Quantizer mathematics against numpy's division, exact integers, and differences of surrogates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.affine import (
    corrected,
    divide,
    fake_quant,
    grid_limits,
    rectified_sigmoid,
    scale_of_range,
)
from jqnt.formats import integer_limits


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_limits_are_exact_for_1_to_32_bits(signed, strict):
    if strict and not signed:
        return
    traced = jax.jit(lambda b: grid_limits(b, signed, strict))
    for bits in range(1, 33):
        exact = integer_limits(bits, signed, strict)
        low, high = traced(jnp.float32(bits))
        # float32 holds the exact integer up to 24 bits, beyond that its nearest number
        assert (float(low), float(high)) == (np.float32(exact[0]), np.float32(exact[1]))
        if bits <= 24:
            assert (int(low), int(high)) == exact


def test_division_equals_numpy_on_exact_ties():
    """x = (k + 1/2) * scale: the reciprocal product would move about one tie in seven."""
    scales = np.float32(np.random.default_rng(0).uniform(1e-3, 1, 50))
    k = np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)
    x = k[None] * scales[:, None]
    fast = jax.jit(lambda x, s: jax.vmap(divide)(x, s))(jnp.asarray(x), jnp.asarray(scales))
    np.testing.assert_array_equal(np.asarray(fast), x / scales[:, None])
    for s, row in zip(scales[:5], x, strict=False):  # a constant divisor too
        y = jax.jit(lambda x, s=s: divide(x, jnp.float32(s)))(jnp.asarray(row))
        np.testing.assert_array_equal(np.asarray(y), row / s)


@pytest.mark.parametrize("under", ["jit", "scan"])
def test_fake_quant_equals_numpy_on_ties(under):
    rng = np.random.default_rng(1)
    scale, zero = np.float32(0.0173), np.float32(7)
    ties = (np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)) * scale
    x = np.concatenate([ties, rng.normal(size=5000).astype(np.float32)])
    expected = (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale

    def quantize(x):
        return fake_quant(
            x, jnp.float32(scale), jnp.float32(zero), jnp.float32(-128), jnp.float32(127)
        )

    if under == "jit":
        found = jax.jit(quantize)(jnp.asarray(x))
    else:
        found = jax.lax.scan(lambda c, row: (c, quantize(row)), 0, jnp.asarray(x)[None])[1][0]
    np.testing.assert_array_equal(np.asarray(found), expected)


def surrogate(x, scale, zero, qmin, qmax, frozen):
    """LSQ's and LSQ+'s surrogate in float64: rounding is the identity plus a frozen residual."""
    v = np.clip(x / scale, qmin - zero, qmax - zero)
    return (v + frozen) * scale


@pytest.mark.parametrize("which", ["x", "scale", "zero_point", "qmin", "qmax"])
def test_gradients_equal_differences_of_the_surrogate(which):
    x = np.random.default_rng(2).normal(size=400).astype(np.float64)
    args = {"x": x, "scale": 0.11, "zero_point": 2.0, "qmin": -8.0, "qmax": 7.0}

    def jax_sum(value):
        full = {**args, which: value}
        full = {k: jnp.asarray(v, jnp.float32) for k, v in full.items()}
        return fake_quant(*full.values())

    grad = jax.grad(lambda v: jax_sum(v).sum())(jnp.asarray(args[which], jnp.float32))
    v = np.clip(x / 0.11, -10, 5)
    frozen = np.rint(v) - v
    eps = 1e-6

    def smooth(delta):
        moved = {**args, which: args[which] + delta}
        return surrogate(*moved.values(), frozen)

    difference = (smooth(eps) - smooth(-eps)) / (2 * eps)
    found = np.asarray(grad)
    if which == "x":
        np.testing.assert_allclose(found, difference, atol=1e-4)
    else:
        np.testing.assert_allclose(found, difference.sum(), rtol=1e-3)


def test_bits_have_the_gradient_of_the_grid():
    """Only values clipped at the top move with unsigned bits: d/db = scale * ln 2 * 2^b each."""
    x = jnp.asarray([0.5, 1.0, 99.0, 100.0])

    def total(bits):
        qmin, qmax = grid_limits(bits, signed=False)
        return fake_quant(x, jnp.float32(1), jnp.float32(0), qmin, qmax).sum()

    np.testing.assert_allclose(jax.grad(total)(jnp.float32(4)), 2 * np.log(2) * 16, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-100, 100, width=32),
    width=st.floats(0, 100, width=32),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
)
def test_a_range_is_covered_and_zero_is_exact(low, width, bits, signed, symmetric):
    low, high = jnp.float32(low), jnp.float32(low + width)
    scale, zero = scale_of_range(low, high, jnp.float32(bits), signed, symmetric)
    qmin, qmax = integer_limits(bits, signed)
    z, s = float(zero), float(scale)
    assert s > 0 and z == round(z) and qmin <= z <= qmax
    slack = 0.51 * s + 1e-5 * (abs(low) + abs(high))  # half a step from rounding the zero point
    if symmetric:
        assert z == (0 if signed else 2 ** (bits - 1))
    assert (qmax - z) * s >= float(high) - slack
    assert (qmin - z) * s <= float(low) + slack


@pytest.mark.parametrize(
    ("low", "high", "signed", "strict", "steps"),
    [
        (-1, 1, True, False, 7),
        (-1, 0.5, True, False, 8),
        (-0.5, 1, True, False, 7),
        (-1, 0.5, True, True, 7),
        (-1, 0.5, False, False, 8),
        (0, 1, False, False, 7),
    ],
)
def test_a_symmetric_grid_uses_the_codes_of_both_sides(low, high, signed, strict, steps):
    scale, _ = scale_of_range(
        jnp.float32(low), jnp.float32(high), jnp.float32(4), signed, True, strict
    )
    assert float(scale) == np.float32(1) / np.float32(steps)


def test_rectified_sigmoid_reaches_both_ends():
    h = rectified_sigmoid(jnp.asarray([-5.0, 0.0, 5.0]))
    np.testing.assert_allclose(h, [0, 0.5, 1], atol=1e-6)


def test_a_quotient_off_by_units_in_the_last_place_is_put_right():
    """As accelerators divide: what the residual makes of it is IEEE's quotient."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=200_000) * 10.0 ** rng.integers(-6, 7, 200_000))
    scale = np.float32(np.exp(rng.normal(size=x.size)))
    x[:1000] = np.float32(rng.integers(-500, 500, 1000) * np.float32(0.5)) * scale[:1000]
    exact = x / scale
    for steps in (-2, -1, 0, 1, 2):
        off = exact
        for _ in range(abs(steps)):
            off = np.nextafter(off, np.float32(np.sign(steps) * np.inf))
        fixed = jax.jit(corrected)(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(off))
        np.testing.assert_array_equal(fixed, exact)
    odd = np.float32([np.inf, -np.inf, np.nan, 0.0, 1.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = odd / np.float32([1, 1, 1, 1, 0])
    under = jnp.asarray([1, 1, 1, 1, 0], jnp.float32)
    np.testing.assert_array_equal(corrected(jnp.asarray(odd), under, jnp.asarray(wanted)), wanted)
    slopes = jax.grad(lambda x, s: corrected(x, s, x / s), argnums=(0, 1))(3.0, 2.0)
    np.testing.assert_allclose(slopes, (0.5, -0.75))
