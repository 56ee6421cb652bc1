"""Conversions between element types."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from onnx import TensorProto

from jqnt.ops.namespace import canonical, dtype_of, namespace, numeric, pointwise
from jqnt.ops.registry import lowering

__all__ = ["convert", "saturated"]

_SATURATING = (
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
)


@pointwise("Cast", since=1)
def cast_1(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Cast.html (the type is named)"""
    return convert(xp, node, x, dtype_of(xp, TensorProto.DataType.Value(node.attrs["to"])))


@pointwise("Cast", since=6)
def cast(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Cast.html"""
    return convert(xp, node, x, dtype_of(xp, node.attrs["to"]))


@lowering("CastLike", since=15)
def cast_like(node, x, like):
    """https://onnx.ai/onnx/operators/onnx__CastLike.html (of any shape: only its type counts)"""
    xp = namespace(x)
    return convert(xp, node, x, canonical(xp, like.dtype))


@pointwise("BitCast", since=26)
def bit_cast(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__BitCast.html"""
    dtype = dtype_of(xp, node.attrs["to"])
    if xp is np:
        return x.view(dtype)
    if x.dtype == np.bool_:
        return lax.bitcast_convert_type(x.astype(np.uint8), dtype)
    if dtype == np.bool_:
        return lax.bitcast_convert_type(x, np.uint8).astype(bool)
    return lax.bitcast_convert_type(x, dtype)


def convert(xp, node, x, dtype):
    """x as `dtype`, by the rules of ONNX's Cast and its attributes."""
    if dtype == ml_dtypes.float8_e8m0fnu and numeric(x.dtype) == "f" and x.dtype != dtype:
        saturate = bool(node.attrs.get("saturate", 1))
        return _exponent_only(xp, x, saturate, node.attrs.get("round_mode", "up"))
    if dtype in _SATURATING and node.attrs.get("saturate", 1):
        return saturated(xp, x, dtype)
    if dtype.itemsize == 1 and numeric(x.dtype) == "f" and numeric(dtype) in "iu":
        # out of range is undefined in ONNX; dropping the high bits is what numpy does
        return x.astype(np.int32).astype(dtype)
    return x.astype(dtype)


def saturated(xp, x, dtype):
    """x as a minifloat `dtype`, its largest value for all that is beyond it; NaN stays NaN."""
    info = ml_dtypes.finfo(dtype)
    wide = x.astype(np.float32) if numeric(x.dtype) != "f" or x.dtype.itemsize < 4 else x
    return xp.clip(wide, float(info.min), float(info.max)).astype(dtype)


def _exponent_only(xp, x, saturate, mode):
    """The exponent of |x| as float8_e8m0fnu: mantissa bits round up, to nearest, or are cut."""
    single = x.astype(np.float32)
    bits = single.view(np.uint32) if xp is np else lax.bitcast_convert_type(single, np.uint32)
    exponent = (bits >> np.uint32(23)) & np.uint32(0xFF)
    fraction = bits & np.uint32(0x7FFFFF)
    if mode == "up":
        more = fraction > 0
    elif mode == "nearest":
        # a tie goes up unless the exponent is that of zero
        more = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    else:
        more = xp.zeros_like(fraction, dtype=bool)
    finite = exponent != 0xFF
    more = more & finite & ~((exponent == 0xFE) & saturate)
    code = xp.where(finite, exponent + more.astype(np.uint32), np.uint32(0xFF)).astype(np.uint8)
    if xp is np:
        return code.view(ml_dtypes.float8_e8m0fnu)
    return lax.bitcast_convert_type(code, jnp.float8_e8m0fnu)
