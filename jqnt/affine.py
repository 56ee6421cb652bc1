"""Quantizer mathematics: straight-through rounding, exact division, grids, fake-quantization."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.rounding import Rounding, rounded
from jqnt.types import Symmetry

__all__ = [
    "corrected",
    "divide",
    "fake_quant",
    "grid_limits",
    "halves",
    "instead",
    "rectified_sigmoid",
    "round_ste",
    "scale_of_range",
]


@jax.custom_jvp
def round_ste(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round half to even; the derivative is that of the identity (Bengio et al. 2013)."""
    return jnp.round(x)


round_ste.defjvp(lambda primals, tangents: (jnp.round(*primals), *tangents))


@jax.custom_jvp
def instead(value: Float[Array, "..."], surrogate: Float[Array, "..."]) -> Float[Array, "..."]:
    """`value`, with the derivative of `surrogate`, which is no part of the result."""
    return value


instead.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def divide(x: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / scale as IEEE 754 divides.

    XLA turns a division by a broadcast value into a product with its reciprocal, which moves
    14 % of exact ties to the other side. A divisor that asks x whether it is a number is no
    broadcast, and no array of x's size in memory either, as one behind a barrier would be.
    Accelerators divide to within one unit in the last place (a third of all quotients on an
    NVIDIA H100): there the residual puts that right.
    """
    quotient = x / jnp.where(x == x, scale, 1)
    if jax.default_backend() == "cpu" or quotient.dtype != jnp.float32:
        return quotient
    return corrected(x, scale, quotient)


def corrected(
    x: Float[Array, "..."], scale: Float[Array, "..."], quotient: Float[Array, "..."]
) -> Float[Array, "..."]:
    """q + (x - q * scale) / scale, with the residual exact: x / scale correctly rounded from a
    quotient that is off by a few units in the last place; the derivative is that of q.

    q and the scale split into halves of 12 bits, whose four products are exact, fused into the
    differences or not (Dekker 1971).
    """
    (q_high, q_low), (s_high, s_low) = halves(quotient), halves(jnp.asarray(scale, jnp.float32))
    rest = x - q_high * s_high - q_high * s_low - q_low * s_high - q_low * s_low
    change = jax.lax.stop_gradient(rest / scale)
    return quotient + jnp.where(jnp.isfinite(change), change, 0)


def halves(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(high, low) of 12 bits each with high + low = x, whose products are exact (Dekker 1971)."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), jnp.int32) & jnp.int32(~0xFFF)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, jax.lax.stop_gradient(x) - high


@jax.custom_jvp
def _power_of_two(bits: Float[Array, "..."]) -> Float[Array, "..."]:
    """2^round(bits) from -126 to 127, by its bits: `exp2` is inexact from 13 bits on, and powers,
    of which `ldexp` is made, are operations of their own in every program."""
    exponent = jnp.clip(jnp.round(bits), -126, 127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(exponent << 23, jnp.float32)


@_power_of_two.defjvp
def _power_of_two_jvp(primals, tangents):
    value = _power_of_two(*primals)
    return value, value * jnp.float32(0.6931471805599453) * tangents[0]


def grid_limits(
    bits: Float[Array, "..."], signed: bool, strict: bool = False
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(qmin, qmax) of an integer grid as float32, from bits inside the trace.

    Exact up to 24 bits, the nearest float32 up to 32. Real-valued bits are rounded; the
    derivative is that of 2^bits (straight-through on the rounding).
    """
    bits = jnp.asarray(bits, jnp.float32)
    if not signed:
        top = _power_of_two(bits) - 1
        return jnp.zeros_like(top), top
    half = _power_of_two(bits - 1)
    if not strict:
        return -half, half - 1
    top = jnp.maximum(half - 1, 1)
    return -top, top


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def fake_quant(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero_point: Float[Array, "..."],
    qmin: Float[Array, "..."],
    qmax: Float[Array, "..."],
    noise: Any = None,
    rounding: Rounding = "half_even",
) -> Float[Array, "..."]:
    """(clip(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale.

    All arguments broadcast against x; `rounding` and `noise` are those of `rounded`. The
    derivatives are those of LSQ (Esser et al. 2020, eq. 3) and LSQ+ (Bhalgat et al. 2020, eq.
    5-7); with v = x / scale, "inside" is qmin - zero_point <= v <= qmax - zero_point:

        dx      1 inside, else 0
        dscale  round(v) - v inside, else (limit - zero_point)
        dzero   0 inside, else -scale
        dlimit  scale where that limit clips
    """
    return _fake_quant(rounding, x, scale, zero_point, qmin, qmax, noise)[0]


def _fake_quant(rounding, x, scale, zero_point, qmin, qmax, noise):
    v = divide(x, scale)
    code = jnp.clip(rounded(v, rounding, noise) + zero_point, qmin, qmax) - zero_point
    return code * scale, v, code


def _fake_quant_jvp(rounding, primals, tangents):
    _, scale, zero_point, qmin, qmax, _ = primals
    dx, dscale, dzero, dqmin, dqmax, _ = tangents
    y, v, code = _fake_quant(rounding, *primals)
    low, high = v < qmin - zero_point, v > qmax - zero_point
    inside = ~(low | high)
    terms = []
    if _moves(dx):
        terms.append(jnp.where(inside, dx, 0))
    if _moves(dscale):
        terms.append(jnp.where(inside, code - v, code) * dscale)
    if _moves(dzero):
        terms.append(jnp.where(inside, 0, -scale) * dzero)
    if _moves(dqmin):
        terms.append(jnp.where(low, scale, 0) * dqmin)
    if _moves(dqmax):
        terms.append(jnp.where(high, scale, 0) * dqmax)
    return y, sum(terms, start=jnp.zeros_like(y))


fake_quant.defjvp(_fake_quant_jvp, symbolic_zeros=True)


def _moves(tangent) -> bool:
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def rectified_sigmoid(logit: Float[Array, "..."]) -> Float[Array, "..."]:
    """h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1), zeta 1.1, gamma -0.1.

    Nagel et al. 2020 (AdaRound), eq. 23, after Louizos et al. 2018.
    """
    return jnp.clip(jax.nn.sigmoid(logit) * 1.2 - 0.1, 0, 1)


def scale_of_range(
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    bits: Float[Array, "..."],
    signed: bool,
    symmetric: Symmetry,
    strict: bool = False,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(scale, zero_point) of the grid that covers [low, high] and zero.

    Asymmetric: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale).
    Symmetric: zero_point is 0 for signed codes, the middle code for unsigned ones, and
    scale = max(high / (qmax - z), low / (qmin - z)): all codes are used, so that an int4 grid
    reaches -1 in steps of 1/8 and 1 in steps of 1/7; strict grids are alike on both sides.
    "one_sided": symmetric, but zero_point = qmin where low >= 0. A range of zero gives scale 1.
    """
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    qmin, qmax = grid_limits(bits, signed, strict)
    if symmetric:
        zero = jnp.zeros_like(qmin) if signed else jnp.ceil((qmin + qmax) / 2)
        if symmetric == "one_sided":
            zero = jnp.where(low < 0, zero, qmin)
        above = divide(high, jnp.maximum(qmax - zero, 1))
        scale = jnp.maximum(above, divide(-low, jnp.maximum(zero - qmin, 1)))
    else:
        zero = None
        scale = divide(high - low, qmax - qmin)
    tiny = jnp.finfo(jnp.float32).tiny
    scale = jnp.where(scale > tiny, scale, 1).astype(jnp.float32)
    if zero is None:
        zero = jnp.clip(jnp.round(qmin - divide(low, scale)), qmin, qmax)
    return scale, jnp.broadcast_to(zero, scale.shape).astype(jnp.float32)
