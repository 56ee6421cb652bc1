"""Sums, products and means of codes by fixed-point multipliers, as TFLite's kernels do them."""

import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.integer.fixed_point import quantized_multiplier
from jqnt.integer.requantize_fixed import (
    Scaled,
    finished,
    fixed_table,
    scaled_double,
    scaled_dyadic,
    scaled_single,
)
from jqnt.integer.rule import Out, Rule

__all__ = [
    "ADD_DOUBLE",
    "ADD_DYADIC",
    "ADD_SINGLE",
    "MEAN_DOUBLE",
    "MEAN_SINGLE",
    "MUL_DOUBLE",
    "MUL_DYADIC",
    "MUL_SINGLE",
    "POOL",
    "SUB_DOUBLE",
    "SUB_DYADIC",
    "SUB_SINGLE",
]

_LEFT = 20
"""The bits that both operands of a sum gain before they are scaled."""


def _scalars(encoding: Encoding) -> tuple[np.float32, np.int32]:
    assert encoding.scale is not None and encoding.zero_point is not None
    return np.float32(encoding.scale), np.int32(encoding.zero_point)


def _add(scaled: Scaled, sign: int = 1) -> Rule:
    """Both operands scaled by s / (2 max(sa, sb)) on 20 more bits, their sum by the rest:
    tensorflow/lite/kernels/add.cc and internal/reference/add.h."""

    def prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
        (sa, za), (sb, zb), (sy, _) = map(_scalars, (a, b, y))
        twice = 2 * max(np.float64(sa), np.float64(sb))
        return {
            "a": fixed_table(np.asarray(np.float64(sa) / twice)),
            "b": fixed_table(np.asarray(np.float64(sb) / twice)),
            "y": fixed_table(np.asarray(twice / (2.0**_LEFT * np.float64(sy)))),
            "za": za,
            "zb": zb,
        }

    def apply(a, b, table: dict, out: Out):
        total = scaled((a - table["za"]) << _LEFT, table["a"])
        total = total + sign * scaled((b - table["zb"]) << _LEFT, table["b"])
        return finished(scaled(total, table["y"]), out)

    return Rule(prepare, apply)


def _mul(scaled: Scaled) -> Rule:
    """tensorflow/lite/kernels/mul.cc: the real multiplier is sa * sb / sy in float32."""

    def prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
        (sa, za), (sb, zb), (sy, _) = map(_scalars, (a, b, y))
        return {**fixed_table(np.asarray(sa * sb / sy, np.float64)), "za": za, "zb": zb}

    def apply(a, b, table: dict, out: Out):
        return finished(scaled((a - table["za"]) * (b - table["zb"]), table), out)

    return Rule(prepare, apply)


def _mean(scaled: Scaled) -> Rule:
    """The count n is divided out of the multiplier, (m << e) / n with e = floor(log2 n):
    QuantizedMeanOrSum in tensorflow/lite/kernels/internal/reference/reduce.h."""

    def prepare(x: Encoding, y: Encoding) -> dict:
        (sx, zx), (sy, _) = map(_scalars, (x, y))
        multiplier, shift = quantized_multiplier(np.asarray(np.float64(sx) / np.float64(sy)))
        if shift < -8:
            raise UnsupportedError(f"a mean onto a grid {float(sy / sx):.0f} times as coarse")
        return {"multiplier": multiplier, "shift": shift, "zx": zx}

    def apply(total, count: int, table: dict, out: Out):
        extra = int(count).bit_length() - 1
        quotient, rest = table["multiplier"] // count, table["multiplier"] % count
        for _ in range(extra):
            quotient, rest = 2 * quotient, 2 * rest
            quotient, rest = quotient + (rest >= count), rest - jnp.where(rest >= count, count, 0)
        rule = {"multiplier": quotient, "shift": table["shift"] - extra}
        return finished(scaled(total - count * table["zx"], rule), out)

    return Rule(prepare, apply)


def _pool_prepare(x: Encoding, y: Encoding) -> dict:
    return {"zx": _scalars(x)[1]}


def _pool_apply(parts, count, table: dict, out: Out):
    """The rounded quotient of codes, halves away from zero; scales of x and y are equal."""
    total = sum(part - table["zx"] for part in parts) + count * table["zx"]
    half = count // 2
    quotient = jnp.where(total > 0, total + half, total - half)
    whole = jnp.sign(quotient) * (jnp.abs(quotient) // count)
    return jnp.clip(whole, out.low, out.high)


ADD_DOUBLE, ADD_SINGLE, ADD_DYADIC = map(_add, (scaled_double, scaled_single, scaled_dyadic))
SUB_DOUBLE, SUB_SINGLE, SUB_DYADIC = (
    _add(scaled, -1) for scaled in (scaled_double, scaled_single, scaled_dyadic)
)
MUL_DOUBLE, MUL_SINGLE, MUL_DYADIC = map(_mul, (scaled_double, scaled_single, scaled_dyadic))
MEAN_DOUBLE, MEAN_SINGLE = map(_mean, (scaled_double, scaled_single))
POOL = Rule(_pool_prepare, _pool_apply)
