"""Scales that lie on a grid of their own: powers of two, and integers times a float per channel."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import ConfigError

__all__ = ["IntegerScales", "PowersOfTwo", "ScaleFormat", "gridded"]


@dataclass(frozen=True)
class PowersOfTwo:
    """2^ceil(log2(scale)): the next power of two that still covers the range (Jain et al. 2020)."""


@dataclass(frozen=True)
class IntegerScales:
    """Block scales c * k with an integer k of `bits` bits, 1 to 2^bits, and a float c per channel.

    c is the largest of the channel's scales over 2^bits ("LPBQ", low-power blockwise
    quantization: AIMET 2, Docs/techniques/blockwise.rst). `axis` is that of the channels.
    """

    bits: int = 4
    axis: int = 0

    def __post_init__(self):
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"block scales have 1 to 8 bits, not {self.bits}")


ScaleFormat = PowersOfTwo | IntegerScales


def gridded(scale: Float[Array, "..."], fmt: ScaleFormat | None) -> Float[Array, "..."]:
    """The positive `scale` on its grid; `None` leaves it alone.

    The derivative is that of the logarithm's straight-through estimate for powers of two, d q =
    q / scale (Jain et al. 2020, eq. 7), and straight-through on the rounding of k.
    """
    scale = jnp.asarray(scale, jnp.float32)
    if fmt is None:
        return scale
    if isinstance(fmt, PowersOfTwo):
        return _power_above(scale)
    most = 2**fmt.bits
    others = tuple(d for d in range(scale.ndim) if d != fmt.axis % scale.ndim)
    channel = jnp.max(scale, axis=others, keepdims=True) / most
    return _steps(scale, channel, float(most))


@jax.custom_jvp
def _power_above(scale: Float[Array, "..."]) -> Float[Array, "..."]:
    mantissa, exponent = jnp.frexp(scale)
    return jnp.ldexp(jnp.float32(1), exponent - (mantissa == 0.5))


@_power_above.defjvp
def _power_above_jvp(primals, tangents):
    value = _power_above(*primals)
    return value, value / primals[0] * tangents[0]


@jax.custom_jvp
def _steps(scale: Float[Array, "..."], channel: Float[Array, "..."], most: float):
    return channel * jnp.clip(jnp.round(scale / channel), 1, most)


@_steps.defjvp
def _steps_jvp(primals, tangents):
    """With k rounded straight through, c * k moves as the scale itself wherever k is inside."""
    scale, channel, most = primals
    ratio = jnp.round(scale / channel)
    low = ratio < 1
    value = channel * jnp.clip(ratio, 1, most)
    return value, jnp.where(low, tangents[1], tangents[0])
