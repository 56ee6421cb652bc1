"""Rules from an accumulator, or from codes of another grid, to codes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jqnt.affine import divide
from jqnt.integer.exact import Wide, exact_mul, round_half_away, to_float
from jqnt.integer.rule import Out, Rule

__all__ = [
    "DIVIDE",
    "ENTER_AWAY",
    "FLOAT",
    "add_bias",
    "half_away",
    "quantize_float",
    "roundf",
]


def _float_prepare(sx, sw, sy, bias: np.ndarray, real_bias: np.ndarray) -> dict:
    """s = f32(f32(sx * sw) / sy); the bias is int64 codes of scale sx * sw."""
    limit = np.iinfo(np.int32)
    scale = (np.float32(sx) * np.asarray(sw, np.float32)) / np.float32(sy)
    return {"scale": scale, "bias": np.clip(bias, limit.min, limit.max).astype(np.int32)}


def _float_apply(acc: Any, table: dict, out: Out) -> Int[Array, "..."]:
    """q = rint(clip(f32(acc + bias) * s, low - z, high - z)) + z."""
    total = to_float(add_bias(acc, table["bias"]))
    return _round_to(exact_mul(total, jnp.broadcast_to(table["scale"], total.shape)), out)


def _divide_prepare(sx: np.float32, zx: int, sy: np.float32) -> dict:
    return {"sx": np.float32(sx), "zx": np.int32(zx), "sy": np.float32(sy)}


def _divide_apply(codes: Int[Array, "..."], table: dict, out: Out) -> Int[Array, "..."]:
    """q = rint(f32((x - zx) * sx) / sy) + z, a true division."""
    real = exact_mul((codes - table["zx"]).astype(jnp.float32), table["sx"])
    return _round_to(divide(real, table["sy"]), out)


def _enter_prepare(scale: np.float32) -> dict:
    return {"inverse": np.float32(1) / np.float32(scale)}


def _enter_apply(x: Float[Array, "..."], table: dict, out: Out) -> Int[Array, "..."]:
    """q = round half away(x * f32(1 / scale)) + z, clipped."""
    return half_away(exact_mul(x, jnp.asarray(table["inverse"])), out)


def half_away(value: Float[Array, "..."], out: Out) -> Int[Array, "..."]:
    """trunc(v + copysign(0.5, v)) in float32, as C code without roundf does it."""
    return _away(value, out, lambda v: jnp.trunc(v + jnp.where(v < 0, -0.5, 0.5)))


def roundf(value: Float[Array, "..."], out: Out) -> Int[Array, "..."]:
    """C's roundf: 0.49999997 becomes 0, where the sum with 0.5 of `half_away` makes it 1."""
    return _away(value, out, round_half_away)


def _away(value: Float[Array, "..."], out: Out, rounding: Any) -> Int[Array, "..."]:
    low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
    whole = rounding(jnp.clip(value, low - 1, high + 1))
    return jnp.clip(whole, low, high).astype(jnp.int32) + out.zero_point


def quantize_float(x: Float[Array, "..."], scale: Any, out: Out) -> Int[Array, "..."]:
    """q = rint(x / scale) + z, clipped: ONNX QuantizeLinear."""
    return _round_to(divide(x, scale), out)


def add_bias(acc: Any, bias: Any) -> Any:
    """acc + bias, int32 as the hardware wraps, or wide."""
    if isinstance(acc, Wide):
        return Wide(acc.high + (bias >> 8), acc.low + (bias & 255))
    return acc + bias


def _round_to(value: Float[Array, "..."], out: Out) -> Int[Array, "..."]:
    """Clipped before rounding, so that no float overflows the conversion."""
    low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32) + out.zero_point


FLOAT = Rule(_float_prepare, _float_apply)
"""One float32 product, round half to even: onnxruntime's MlasRequantizeOutput."""

ENTER_AWAY = Rule(_enter_prepare, _enter_apply)
"""How ncnn and MNN put floats onto a grid: a product with the reciprocal, halves away from zero."""

DIVIDE = Rule(_divide_prepare, _divide_apply)
"""DequantizeLinear then QuantizeLinear in float32."""
