"""64 bit products and rounding shifts in 32 bit operations, against numpy's int64 and Python's."""

import jax
import numpy as np
import pytest

from jqnt.integer.fixed_point import (
    doubling_high_mul,
    multiply,
    quantized_multiplier,
    rounding_divide,
    shift_half_even,
    shift_half_up,
)

COUNT = 2_000_000
EDGES = np.asarray(
    [0, 1, -1, 2, -2, 3, -3, 2**15, -(2**15), 2**16 - 1, 2**16, 2**30, -(2**30), 2**31 - 1,
     -(2**31), -(2**31) + 1]
)  # fmt: skip


def _numbers(seed=0):
    """Random int32 of every magnitude and every pair of edges; multipliers are not negative."""
    rng = np.random.default_rng(seed)
    width = rng.integers(1, 32, COUNT)
    a = rng.integers(-(2**31), 2**31, COUNT) >> (31 - width)
    b = rng.integers(0, 2**31, COUNT) >> rng.integers(0, 31, COUNT)
    first, second = np.meshgrid(EDGES, EDGES[EDGES >= 0])
    a[: first.size], b[: first.size] = first.reshape(-1), second.reshape(-1)
    return a.astype(np.int32), b.astype(np.int32)


def _saturated(x):
    return np.clip(x, -(2**31), 2**31 - 1)


def test_products_are_exact():
    a, b = _numbers()
    high, low = jax.jit(multiply)(a, b)
    exact = a.astype(np.int64) * b
    np.testing.assert_array_equal(np.asarray(high), exact >> 32)
    np.testing.assert_array_equal(np.asarray(low), exact & 0xFFFFFFFF)


def test_doubling_high_mul_is_gemmlowps():
    """The C code: a nudge by the sign, then a division that truncates."""
    a, b = _numbers(1)
    exact = a.astype(np.int64) * b
    nudged = exact + np.where(exact >= 0, 2**30, 1 - 2**30)
    expected = np.sign(nudged) * (np.abs(nudged) // 2**31)
    np.testing.assert_array_equal(np.asarray(jax.jit(doubling_high_mul)(a, b)), expected)


@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 15, 30])
def test_rounding_divide_goes_away_from_zero(exponent):
    a, _ = _numbers(2)
    ours = jax.jit(rounding_divide)(a, np.int32(exponent))
    magnitude = (np.abs(a.astype(np.int64)) + (2**exponent >> 1)) >> exponent
    np.testing.assert_array_equal(np.asarray(ours), np.sign(a.astype(np.int64)) * magnitude)


@pytest.mark.parametrize("shift", [1, 2, 15, 30, 31, 32, 33, 40, 47, 61, 62])
def test_shifts_of_products(shift):
    a, b = _numbers(3)
    exact = a.astype(np.int64) * b
    exact[:1000] = 0
    a[:1000] = 0
    half = np.int64(1) << (shift - 1)
    floor, rest = exact >> shift, exact & ((np.int64(1) << shift) - 1)
    up = floor + (rest >= half)
    even = floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))
    run = jax.jit(
        lambda a, b, s: (shift_half_up(multiply(a, b), s), shift_half_even(multiply(a, b), s))
    )
    first, second = run(a, b, np.int32(shift))
    np.testing.assert_array_equal(np.asarray(first), _saturated(up))
    np.testing.assert_array_equal(np.asarray(second), _saturated(even))


@pytest.mark.parametrize("shift", [1, 4, 20, 31, 32, 45])
def test_ties_of_shifts(shift):
    """Products that lie on halves: k * 2^(shift - 1) with odd k."""
    k = np.arange(-999, 1000, 2)
    first = min(shift - 1, 20)
    a = (k * 2**first).astype(np.int32)
    b = np.full(k.size, 2 ** (shift - 1 - first), np.int32)
    up = jax.jit(lambda a, b, s: shift_half_up(multiply(a, b), s))(a, b, np.int32(shift))
    even = jax.jit(lambda a, b, s: shift_half_even(multiply(a, b), s))(a, b, np.int32(shift))
    np.testing.assert_array_equal(np.asarray(up), (k + 1) >> 1)
    np.testing.assert_array_equal(np.asarray(even), np.rint(k / 2))


def test_multipliers_are_normal_and_near():
    rng = np.random.default_rng(4)
    real = np.concatenate([10.0 ** rng.uniform(-8, 8, 10_000), [1.0, 0.5, 2.0, 1 - 2.0**-40]])
    fixed, shift = quantized_multiplier(real)
    assert ((fixed >= 2**30) & (fixed.astype(np.int64) < 2**31)).all()
    np.testing.assert_allclose(fixed * 2.0 ** (shift - 31.0), real, rtol=2.0**-31)
    assert quantized_multiplier(np.asarray(2.0**-40))[0] == 0
