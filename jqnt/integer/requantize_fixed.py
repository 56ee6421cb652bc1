"""Requantization by fixed-point multipliers: two roundings or one, dyadic, powers of two."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.errors import UnsupportedError
from jqnt.integer.fixed_point import (
    doubling_high_mul,
    multiply,
    quantized_multiplier,
    rounding_divide,
    shift_half_even,
    shift_half_up,
)
from jqnt.integer.requantize import add_bias
from jqnt.integer.rule import Out, Rule

__all__ = [
    "DOUBLE",
    "DYADIC",
    "POWER",
    "RESCALE_DOUBLE",
    "RESCALE_DYADIC",
    "RESCALE_POWER",
    "RESCALE_SINGLE",
    "SINGLE",
    "finished",
    "fixed_table",
    "scaled_double",
    "scaled_dyadic",
    "scaled_single",
]

Scaled = Callable[[Int[Array, "..."], dict], Int[Array, "..."]]


def fixed_table(real: np.ndarray) -> dict:
    """multiplier and shift of a real number (float64)."""
    multiplier, shift = quantized_multiplier(real)
    return {"multiplier": multiplier, "shift": shift}


def scaled_double(x: Int[Array, "..."], table: dict) -> Int[Array, "..."]:
    """RDByPOT(SRDHM(x << max(shift, 0), m), max(-shift, 0)): TFLite's reference kernels."""
    shift = jnp.asarray(table["shift"])
    left = jnp.broadcast_to(x << jnp.maximum(shift, 0), x.shape)
    high = doubling_high_mul(left, jnp.asarray(table["multiplier"]))
    return rounding_divide(high, jnp.maximum(-shift, 0))


def scaled_single(x: Int[Array, "..."], table: dict) -> Int[Array, "..."]:
    """(x * m + 2^(30 - shift)) >> (31 - shift): TFLite built with TFLITE_SINGLE_ROUNDING."""
    product = multiply(x, jnp.asarray(table["multiplier"]))
    return shift_half_up(product, 31 - jnp.asarray(table["shift"]))


def scaled_dyadic(x: Int[Array, "..."], table: dict) -> Int[Array, "..."]:
    """round(x * b / 2^c), halves to even: HAWQ-V3 (Yao et al. 2021, eq. 5)."""
    product = multiply(x, jnp.asarray(table["multiplier"]))
    return shift_half_even(product, 31 - jnp.asarray(table["shift"]))


def _power_table(real: np.ndarray) -> dict:
    mantissa, _ = np.frexp(real)
    if (mantissa != 0.5).any():
        worst = float(np.asarray(real).reshape(-1)[np.argmax(np.ravel(mantissa != 0.5))])
        raise UnsupportedError(
            f"power-of-two arithmetic needs sx * sw / sy to be a power of two, here it is {worst}"
        )
    return fixed_table(real)


def _products(table_of: Callable[[np.ndarray], dict], scaled: Scaled) -> Rule:
    def prepare(sx, sw, sy, bias, real_bias) -> dict:
        limit = np.iinfo(np.int32)
        real = np.float64(sx) * np.asarray(sw, np.float64) / np.float64(sy)
        codes = np.clip(bias, limit.min, limit.max).astype(np.int32)
        return {**table_of(real), "bias": codes}

    def apply(acc, table: dict, out: Out):
        return finished(scaled(add_bias(acc, table["bias"]), table), out)

    return Rule(prepare, apply)


def _codes(table_of: Callable[[np.ndarray], dict], scaled: Scaled) -> Rule:
    def prepare(sx, zx, sy) -> dict:
        real = np.asarray(np.float64(sx) / np.float64(sy))
        return {**table_of(real), "zx": np.int32(zx)}

    def apply(codes, table: dict, out: Out):
        return finished(scaled(codes - table["zx"], table), out)

    return Rule(prepare, apply)


def finished(x: Int[Array, "..."], out: Out) -> Int[Array, "..."]:
    """Clamped before the zero point comes, so that nothing wraps."""
    return jnp.clip(x, out.low - out.zero_point, out.high - out.zero_point) + out.zero_point


DOUBLE = _products(fixed_table, scaled_double)
SINGLE = _products(fixed_table, scaled_single)
DYADIC = _products(fixed_table, scaled_dyadic)
POWER = _products(_power_table, scaled_single)
RESCALE_DOUBLE = _codes(fixed_table, scaled_double)
RESCALE_SINGLE = _codes(fixed_table, scaled_single)
RESCALE_DYADIC = _codes(fixed_table, scaled_dyadic)
RESCALE_POWER = _codes(_power_table, scaled_single)
