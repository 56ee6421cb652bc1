"""Fixed-point requantization: 32 x 32 bit products and rounding shifts, in 32 bit operations.

64 bit integers would need the x64 switch; here a product is two words, high (int32) and low
(uint32), and its value is 2^32 * high + low.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.types import Leaf

__all__ = ["Product", "doubling_high_mul", "multiply", "quantized_multiplier", "rounding_divide",
           "shift_half_even", "shift_half_up"]  # fmt: skip


class Product(NamedTuple):
    """A 64 bit integer in two words."""

    high: Leaf
    low: Leaf


def multiply(a: Int[Array, "..."], b: Int[Array, "..."]) -> Product:
    """The exact product of two int32 arrays; b is not negative."""
    a_high, a_low = a >> 16, (a & 0xFFFF).astype(jnp.uint32)
    b_high, b_low = b >> 16, (b & 0xFFFF).astype(jnp.uint32)
    low = a_low * b_low
    middle = a_high * b_low.astype(jnp.int32) + (low >> 16).astype(jnp.int32)
    rest = (middle & 0xFFFF).astype(jnp.uint32) + a_low * b_high.astype(jnp.uint32)
    high = a_high * b_high + (middle >> 16) + (rest >> 16).astype(jnp.int32)
    return Product(high, (rest << 16) | (low & 0xFFFF))


def doubling_high_mul(a: Int[Array, "..."], b: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor((a * b + 2^30) / 2^31): gemmlowp's SaturatingRoundingDoublingHighMul, b >= 0."""
    high, low = _plus(multiply(a, b), jnp.int32(0), jnp.uint32(2**30))
    return (high << 1) | (low >> 31).astype(jnp.int32)


def rounding_divide(x: Int[Array, "..."], exponent: Int[Array, "..."]) -> Int[Array, "..."]:
    """x / 2^exponent, halves away from zero (gemmlowp: RoundingDivideByPOT), 0 <= exponent < 32."""
    mask = (jnp.int32(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def shift_half_up(product: Product, shift: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor((p + 2^(shift - 1)) / 2^shift) for 1 <= shift <= 62, saturated to int32."""
    return _saturated(_shifted(_plus(product, *_half(shift)), shift))


def shift_half_even(product: Product, shift: Int[Array, "..."]) -> Int[Array, "..."]:
    """p / 2^shift for 1 <= shift <= 62, halves to the even neighbour, saturated to int32."""
    half = _half(shift)
    up = _shifted(_plus(product, *half), shift)
    # Adding half left no remainder exactly where p lay on a half.
    total = _plus(product, *half)
    wide = shift >= 32
    low_mask = jnp.where(wide, jnp.uint32(0xFFFFFFFF), (jnp.uint32(1) << _u(shift & 31)) - 1)
    high_mask = jnp.where(wide, (jnp.int32(1) << (shift & 31)) - 1, 0)
    tie = ((total.low & low_mask) == 0) & ((total.high & high_mask) == 0)
    odd = (up.low & 1) == 1
    down = _plus(up, jnp.int32(-1), jnp.uint32(0xFFFFFFFF))
    pick = tie & odd
    return _saturated(Product(*(jnp.where(pick, d, u) for d, u in zip(down, up, strict=True))))


def quantized_multiplier(real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, shift) with real = m / 2^31 * 2^shift, m in [2^30, 2^31): TFLite's QuantizeMultiplier.

    `real` is float64; the rounding of m is half away from zero. Below 2^-32 the multiplier is
    zero, above 2^30 it saturates.
    """
    mantissa, shift = np.frexp(np.asarray(real, np.float64))
    fixed = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    carry = fixed == 2**31
    fixed, shift = np.where(carry, 2**30, fixed), shift + carry
    small, large = shift < -31, shift > 30
    fixed = np.where(small, 0, np.where(large, 2**31 - 1, fixed))
    shift = np.where(small, 0, np.where(large, 30, shift))
    return fixed.astype(np.int32), shift.astype(np.int32)


def _u(x):
    return jnp.asarray(x).astype(jnp.uint32)


def _half(shift):
    """2^(shift - 1) in two words."""
    place = shift - 1
    low = jnp.where(place < 32, jnp.uint32(1) << _u(place & 31), jnp.uint32(0))
    high = jnp.where(place < 32, 0, jnp.int32(1) << (place & 31))
    return high, low


def _plus(a: Product, high, low) -> Product:
    total = a.low + low
    return Product(a.high + high + (total < low).astype(jnp.int32), total)


def _shifted(a: Product, shift) -> Product:
    """Arithmetic shift to the right by 1 to 62."""
    near = shift & 31
    back = (32 - near) & 31
    carried = jnp.where(near == 0, jnp.uint32(0), _u(a.high) << _u(back))
    narrow = Product(a.high >> near, carried | (a.low >> _u(near)))
    narrow = narrow._replace(low=jnp.where(near == 0, a.low, narrow.low))
    wide = Product(a.high >> 31, _u(a.high >> near))
    return Product(*(jnp.where(shift >= 32, w, n) for w, n in zip(wide, narrow, strict=True)))


def _saturated(a: Product) -> Int[Array, "..."]:
    value = a.low.astype(jnp.int32)
    fits = a.high == (value >> 31)
    limit = jnp.where(a.high < 0, jnp.int32(-(2**31)), jnp.int32(2**31 - 1))
    return jnp.where(fits, value, limit)
