"""Rules from an accumulator, or from codes of another grid, to codes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jqnt.affine import divide
from jqnt.integer.exact import Wide, exact_fma, exact_mul, to_float
from jqnt.integer.rule import Out, Rule

__all__ = [
    "DIVIDE",
    "ENTER_AWAY",
    "FLOAT",
    "NCNN",
    "NCNN_DENSE_REAL",
    "NCNN_REAL",
    "add_bias",
    "half_away",
    "quantize_float",
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


def _ncnn_prepare(sx, sw, sy, bias, real_bias) -> dict:
    """ncnn keeps the reciprocals: r = f32(1 / (f32(1/sx) * f32(1/sw))), t = f32(1/sy)."""
    one = np.float32(1)
    rx, rw = one / np.float32(sx), one / np.asarray(sw, np.float32)
    bias = np.asarray(real_bias, np.float32)
    return {"scale": one / (rx * rw), "bias": bias, "top": one / np.float32(sy)}


def _ncnn_real_prepare(sx, sw, bias, real_bias) -> dict:
    return {k: v for k, v in _ncnn_prepare(sx, sw, 1, bias, real_bias).items() if k != "top"}


def _ncnn_real_apply(acc: Any, table: dict) -> Float[Array, "..."]:
    """v = fma(f32(acc), r, bias), as compilers fuse it."""
    total = to_float(acc)
    scale, bias = (jnp.broadcast_to(table[k], total.shape) for k in ("scale", "bias"))
    return exact_fma(total, scale, bias)


def _enter_prepare(scale: np.float32) -> dict:
    return {"inverse": np.float32(1) / np.float32(scale)}


def _enter_apply(x: Float[Array, "..."], table: dict, out: Out) -> Int[Array, "..."]:
    """q = round half away(x * f32(1 / scale)) + z, clipped."""
    return half_away(exact_mul(x, jnp.asarray(table["inverse"])), out)


def _ncnn_apply(acc: Any, table: dict, out: Out) -> Int[Array, "..."]:
    """v = f32(acc) * r + bias; q = round half away(v * t): no zero points."""
    total = to_float(acc)
    product = exact_mul(total, jnp.broadcast_to(table["scale"], total.shape))
    real = product + table["bias"]
    return half_away(exact_mul(real, jnp.broadcast_to(table["top"], real.shape)), out)


def half_away(value: Float[Array, "..."], out: Out) -> Int[Array, "..."]:
    """trunc(v + copysign(0.5, v)) in float32, as C code without roundf does it."""
    low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
    value = jnp.clip(value, low - 1, high + 1)
    whole = jnp.trunc(value + jnp.where(value < 0, -0.5, 0.5))
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

NCNN = Rule(_ncnn_prepare, _ncnn_apply)
"""ncnn's requantized int8 layers, symmetric grids of -127 to 127."""

NCNN_REAL = Rule(_ncnn_real_prepare, _ncnn_real_apply)
"""ncnn's int8 convolutions whose output stays float."""

NCNN_DENSE_REAL = Rule(
    _ncnn_real_prepare,
    lambda acc, table: exact_mul(to_float(acc), table["scale"]) + table["bias"],
)
"""ncnn's inner products whose output stays float: two roundings."""

ENTER_AWAY = Rule(_enter_prepare, _enter_apply)
"""How ncnn and MNN put floats onto a grid: a product with the reciprocal, halves away from zero."""

DIVIDE = Rule(_divide_prepare, _divide_apply)
"""DequantizeLinear then QuantizeLinear in float32."""
