"""Rules of Softmax on codes: gemmlowp's fixed-point exponential, onnxruntime's table."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jqnt.affine import divide
from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.integer.fixed_point import doubling_high_mul, quantized_multiplier, rounding_divide
from jqnt.integer.rule import Out, Rule

__all__ = ["FIXED", "TABLE"]

_ONE = 2**31 - 1
_INPUT_BITS, _SUM_BITS = 5, 12
_BARREL = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535),
           (3, 720401), (4, 242))  # fmt: skip
"""(e, exp(-2^e) in Q0.31)."""


def _fixed_prepare(x: Encoding, y: Encoding, length: int) -> dict:
    """The input scale in Q5.26, and the difference from which exp is zero:
    tensorflow/lite/kernels/internal/quantization_util.cc, PreprocessSoftmaxScaling."""
    assert x.scale is not None and y.scale is not None and y.zero_point is not None
    if y.scale != np.float32(2.0**-8) or y.zero_point != y.format.limits[0]:  # pyright: ignore
        raise UnsupportedError("TFLite's Softmax has the output scale 1/256 and its lowest code 0")
    real = min(np.float64(x.scale) * 2.0 ** (31 - _INPUT_BITS), 2.0**31 - 1)
    multiplier, shift = quantized_multiplier(np.asarray(real))
    radius = np.floor((2**_INPUT_BITS - 1) * 2.0 ** (31 - _INPUT_BITS) / 2.0 ** int(shift))
    return {"multiplier": multiplier, "shift": shift, "smallest": np.int32(-radius)}


def _fixed_apply(codes: Int[Array, "... n"], table: dict, out: Out):
    """exp(x - max) / sum in fixed point: tensorflow/lite/kernels/internal/reference/softmax.h."""
    difference = codes - codes.max(-1, keepdims=True)
    counts = difference >= table["smallest"]
    scaled = _high(jnp.where(counts, difference, 0) << table["shift"], table["multiplier"])
    exponential = jnp.where(counts, _exp(scaled), 0)
    terms = jnp.where(counts, rounding_divide(exponential, jnp.int32(_SUM_BITS)), 0)
    total = terms.sum(-1, keepdims=True, dtype=jnp.int32)
    zeros = lax.clz(total)
    fraction = ((total.astype(jnp.uint32) << zeros.astype(jnp.uint32)) - jnp.uint32(2**31)).astype(
        jnp.int32
    )
    scale = _reciprocal(fraction)
    exponent = _SUM_BITS - zeros + 31 - 8
    product = _high(jnp.broadcast_to(scale, exponential.shape), exponential)
    result = rounding_divide(product, exponent) + out.zero_point
    return jnp.clip(jnp.where(counts, result, out.zero_point), out.low, out.high)


def _high(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul of any signs."""
    a, b = jnp.broadcast_arrays(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32))
    return doubling_high_mul(jnp.where(b < 0, -a, a), jnp.abs(b))


def _exp(a):
    """exp of a <= 0 in Q5.26 as Q0.31: gemmlowp's exp_on_negative_values."""
    quarter = 2 ** (31 - _INPUT_BITS - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_near(rest << _INPUT_BITS)
    remainder = rest - a
    for exponent, factor in _BARREL:
        bit = 1 << (31 - _INPUT_BITS + exponent)
        result = jnp.where(remainder & bit != 0, _high(result, factor), result)
    return jnp.where(a == 0, _ONE, result)


def _exp_near(a):
    """exp on [-1/4, 0) in Q0.31, by Taylor's series around -1/8."""
    constant, third = 1895147668, 715827883
    x = a + 2**28
    square = _high(x, x)
    cube, fourth = _high(square, x), _high(square, square)
    quarter = rounding_divide(fourth, jnp.int32(2))
    tail = rounding_divide(_high(quarter + cube, third) + square, jnp.int32(1))
    return constant + _high(constant, x + tail)


def _reciprocal(a):
    """1 / (1 + a) for a in [0, 1), Q0.31: three steps of Newton and Raphson in Q2.29."""
    half = (a >> 1) + 2**30  # (a + (2^31 - 1) + 1) / 2, truncated
    x = 1515870810 + _high(half, -1010580540)
    for _ in range(3):
        x = x + _shifted_left(_high(x, 2**29 - _high(half, x)), 2)
    return _shifted_left(x, 1)


def _shifted_left(x, count):
    """x * 2^count, saturated."""
    top = (2**31 - 1) >> count
    wide = jnp.where(x > top, _ONE, jnp.where(x < -top - 1, -(2**31), x << count))
    return wide.astype(jnp.int32)


def _table_prepare(x: Encoding, y: Encoding, length: int) -> dict:
    """float32 exp of every difference from the largest code, raised so that the sum just fits:
    contrib_ops/cpu/quantization/qlinear_softmax.cc."""
    assert x.scale is not None and y.scale is not None
    scale = np.float64(x.scale)
    room = np.float32(np.finfo(np.float32).max) / np.float32(length)
    lift = max(0.0, float(np.float32(np.log(np.float64(room)))) - 5)  # logf
    table = np.exp((np.arange(256.0) - 255 + lift / scale) * scale).astype(np.float32)
    return {
        "table": table,
        "scale": np.floor(np.float32(1) / np.float32(y.scale)),
    }


def _table_apply(codes: Int[Array, "... n"], table: dict, out: Out):
    """q = rint(e * floor(1 / sy) / sum) + zy, the sum in float32 one term after the other."""
    exponential = jnp.take(table["table"], 255 + codes - codes.max(-1, keepdims=True), mode="clip")
    terms = jnp.moveaxis(exponential, -1, 0)
    total, _ = lax.scan(lambda s, e: (s + e, None), jnp.zeros(terms.shape[1:], jnp.float32), terms)
    value = divide(exponential * table["scale"], total[..., None])
    result = jnp.round(value).astype(jnp.int32) + out.zero_point
    return jnp.clip(result, out.low, out.high)


FIXED = Rule(_fixed_prepare, _fixed_apply)
"""TFLite's reference kernel."""

TABLE = Rule(_table_prepare, _table_apply)
"""onnxruntime's QLinearSoftmax."""
