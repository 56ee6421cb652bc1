"""Float32 and wide-integer arithmetic whose roundings no compiler moves: products, fused sums."""

from fractions import Fraction
from typing import NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jqnt.affine import halves

__all__ = [
    "Wide",
    "exact_fma",
    "exact_mul",
    "fma32",
    "round_half_away",
    "to_float",
    "widen",
]


class Wide(NamedTuple):
    """The integer 256 * high + low in two int32 arrays of one shape: accumulators past 32 bits."""

    high: Int[Array, "..."]
    low: Int[Array, "..."]


def exact_mul(a: Num[Array, "..."], b: Num[Array, "..."]) -> Num[Array, "..."]:
    """a * b, rounded once and for all.

    XLA contracts a * b + c to a fused multiply-add, which skips the rounding of the product in
    23 % of cases. A barrier does not stop it; a select between product and sum does.
    """
    product = a * b
    return jnp.where(jnp.isnan(product), jnp.zeros_like(product), product)


def exact_fma(
    a: Float[Array, "..."], b: Float[Array, "..."], c: Float[Array, "..."]
) -> Float[Array, "..."]:
    """a * b + c with one rounding, where a holds integers of at most 24 bits.

    For backends that fuse on purpose; the answer does not depend on what the compiler fuses.
    a and b split into halves of 12 bits, whose four products are exact and give the error of
    the product (Dekker 1971); the sum of three is rounded through an odd last bit (Boldo &
    Melquiond 2008, Emulation of a FMA, fig. 5).
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    upper = exact_mul(a, b)
    lower = ((a_high * b_high - upper) + a_high * b_low) + a_low * b_high + a_low * b_low
    tail, rest = _two_sum(c, lower)
    total, error = _two_sum(upper, tail)
    return total + _odd_sum(rest, error)


def fma32(a: SupportsFloat, b: SupportsFloat, c: SupportsFloat) -> np.float32:
    """a * b + c of three float32 numbers, rounded once, outside any trace."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = float(exact)
    error = exact - Fraction(near)
    if error and not np.float64(near).view(np.int64) & 1:
        near = float(np.nextafter(near, np.inf if error > 0 else -np.inf))
    return np.float32(near)


def round_half_away(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest integer, halves away from zero, as C's roundf."""
    whole = jnp.trunc(x)
    return whole + jnp.where(jnp.abs(x - whole) >= 0.5, jnp.sign(x), 0)


def to_float(acc: Int[Array, "..."] | Wide) -> Float[Array, "..."]:
    """The nearest float32 of an accumulator, below 2^40 in magnitude if it is wide."""
    if not isinstance(acc, Wide):
        return acc.astype(jnp.float32)
    high = acc.high + (acc.low >> 8)
    top, bottom = high >> 8, ((high & 255) << 8) + (acc.low & 255)
    return top.astype(jnp.float32) * 65536.0 + bottom.astype(jnp.float32)


def widen(acc: Int[Array, "..."] | Wide) -> Wide:
    """An int32 accumulator as a wide one."""
    return acc if isinstance(acc, Wide) else Wide(acc >> 8, acc & 255)


def _two_sum(a, b):
    """(s, e) with s = round(a + b) and s + e = a + b exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd_sum(a, b):
    """a + b rounded to odd: if inexact, to the neighbour whose last bit is one."""
    total, error = _two_sum(a, b)
    bits = jax.lax.bitcast_convert_type(total, jnp.int32)
    away = (error > 0) == (total > 0)
    moved = jnp.where(away, bits + 1, bits - 1)
    bits = jnp.where((error != 0) & (bits & 1 == 0), moved, bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
