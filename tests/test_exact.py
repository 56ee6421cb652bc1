"""Roundings that the compiler must not move, against exact rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.integer.exact import Wide, exact_fma, exact_mul, fma32, round_half_away, to_float


def _rounded(exact: Fraction) -> np.float32:
    """The nearest float32, ties to even, decided on exact numbers."""
    near = np.float32(float(exact))
    candidates = [
        near,
        np.nextafter(near, np.float32(np.inf)),
        np.nextafter(near, -np.float32(np.inf)),
    ]
    return min(
        candidates,
        key=lambda c: (abs(Fraction(float(c)) - exact), int(np.float32(c).view(np.int32)) & 1),
    )


def _operands(n: int):
    rng = np.random.default_rng(0)
    a = rng.integers(-255, 256, n).astype(np.float32)
    a[n // 4 : n // 2] = rng.integers(-(2**24), 2**24, n // 2 - n // 4)
    b = (rng.normal(size=n) * 10.0 ** rng.integers(-3, 3, n)).astype(np.float32)
    c = (rng.normal(size=n) * 10.0 ** rng.integers(-3, 3, n)).astype(np.float32)
    b[: n // 2] = rng.integers(1, 2**12, n // 2) / 8
    c[: n // 2] = rng.integers(-(2**20), 2**20, n // 2) / 16
    return a, b, c


def test_fused_product_and_sum_round_once():
    a, b, c = _operands(4000)
    ours = np.asarray(jax.jit(exact_fma)(a, b, c))
    for x, y, z, found in zip(a, b, c, ours, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert found == _rounded(exact) == fma32(x, y, z)


def test_product_keeps_its_own_rounding_before_a_sum():
    a, b, c = _operands(200_000)
    ours = np.asarray(jax.jit(lambda a, b, c: exact_mul(a, b) + c)(a, b, c))
    np.testing.assert_array_equal(ours, (a * b) + c)


def test_halves_away_from_zero():
    x = np.asarray([0.5, -0.5, 1.5, -1.5, 2.5, 0.49999997, -0.49999997, 8388607.5], np.float32)
    expected = [1, -1, 2, -2, 3, 0, 0, 8388608]
    np.testing.assert_array_equal(np.asarray(jax.jit(round_half_away)(x)), expected)


def test_wide_accumulators_become_the_nearest_float():
    rng = np.random.default_rng(1)
    high = rng.integers(-(2**29), 2**29, 200_000).astype(np.int32)
    low = rng.integers(-(2**30), 2**30, 200_000).astype(np.int32)
    high[:1000] = np.arange(-500, 500)
    exact = high.astype(np.int64) * 256 + low
    ours = jax.jit(lambda h, low: to_float(Wide(h, low)))(jnp.asarray(high), jnp.asarray(low))
    np.testing.assert_array_equal(np.asarray(ours), exact.astype(np.float32))
