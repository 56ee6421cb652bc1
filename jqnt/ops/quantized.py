"""QuantizeLinear and DequantizeLinear of every opset, per tensor, axis and block."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jqnt.affine import divide
from jqnt.errors import ModelError
from jqnt.ops.cast import saturated
from jqnt.ops.namespace import axis_of, dtype_of, namespace, numeric
from jqnt.ops.registry import lowering

__all__ = ["code_limits", "dequantized", "quantized", "quotient", "spread"]


@lowering("QuantizeLinear", domain="com.microsoft")
@lowering("QuantizeLinear", since=10)
def quantize_linear(node, x, scale, zero_point=None):
    """https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"""
    xp = namespace(x, scale, zero_point)
    target = node.attrs.get("output_dtype", 0)
    if zero_point is not None:
        dtype = np.dtype(zero_point.dtype)
    else:
        dtype = dtype_of(xp, target) if target else np.dtype(np.uint8)
    precision = node.attrs.get("precision", 0)
    wide = dtype_of(xp, precision) if precision else np.dtype(scale.dtype)
    ratio = quotient(xp, x.astype(wide), spread(xp, node, scale, x.shape).astype(wide))
    if numeric(dtype) == "f":
        if zero_point is not None and dtype.itemsize == 1 and "float8" not in dtype.name:
            ratio = ratio + spread(xp, node, zero_point, x.shape).astype(ratio.dtype)
        if node.attrs.get("saturate", 1) or "float8" not in dtype.name:
            return saturated(xp, ratio, dtype)
        return ratio.astype(dtype)
    zero = None if zero_point is None else spread(xp, node, zero_point, x.shape)
    return quantized(xp, ratio, zero, dtype)


@lowering("DequantizeLinear", domain="com.microsoft")
@lowering("DequantizeLinear", since=10)
def dequantize_linear(node, x, scale, zero_point=None):
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html"""
    xp = namespace(x, scale, zero_point)
    target = node.attrs.get("output_dtype", 0)
    dtype = dtype_of(xp, target) if target else scale.dtype
    zero = None if zero_point is None else spread(xp, node, zero_point, x.shape)
    return dequantized(xp, x, spread(xp, node, scale, x.shape), zero).astype(dtype)


@lowering("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(node, x):
    """https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html"""
    xp = namespace(x)
    low = xp.minimum(xp.min(x), xp.zeros((), x.dtype))
    high = xp.maximum(xp.max(x), xp.zeros((), x.dtype))
    width = quotient(xp, high - low, xp.full((), 255, x.dtype))
    scale = xp.where(width == 0, xp.full((), 1 / 255, x.dtype), width)
    zero = xp.clip(xp.round(quotient(xp, -low, scale)), 0, 255).astype(np.uint8)
    codes = quantized(xp, quotient(xp, x, scale), zero, np.dtype(np.uint8))
    return codes, xp.asarray(scale), xp.asarray(zero)


def code_limits(dtype: np.dtype) -> tuple[int, int]:
    """The smallest and the largest code of an integer type."""
    info = ml_dtypes.iinfo(dtype)
    return int(info.min), int(info.max)


def quotient(xp, x, scale):
    """x / scale as IEEE 754 divides: XLA would multiply by the reciprocal."""
    return x / scale if xp is np else divide(jnp.asarray(x), jnp.asarray(scale))


def quantized(xp, ratio, zero_point, dtype):
    """saturate(round_half_even(ratio) + zero_point) as integers."""
    codes = xp.round(ratio)
    if codes.dtype.itemsize < 4:
        # 16-bit codes do not fit half precision
        codes = codes.astype(np.float32)
    if zero_point is not None:
        codes = codes + zero_point.astype(np.int32).astype(codes.dtype)
    codes = xp.clip(codes, *code_limits(dtype)).astype(np.int32)
    return codes.astype(dtype)


def dequantized(xp, x, scale, zero_point):
    """(x - zero_point) * scale, in float32 at least; the difference is exact."""
    if numeric(x.dtype) in "iu":
        x = x.astype(np.int32)
        x = x if zero_point is None else x - zero_point.astype(np.int32)
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    return x.astype(wide) * scale.astype(wide)


def spread(xp, node, scale, shape):
    """A scale or zero point so that it broadcasts against data of `shape`.

    Scalars and single values hold for all; a vector goes along `axis`; anything else is one
    value per block of `block_size` along `axis`.
    """
    if scale.size == 1 and (scale.ndim <= 1 or scale.ndim != len(shape)):
        return xp.reshape(scale, ())
    axis = axis_of(node, node.attrs.get("axis", 1), len(shape))
    block = node.attrs.get("block_size", 0)
    if not block:
        if scale.ndim != 1 or scale.shape[0] != shape[axis]:
            raise ModelError(
                f"{node.op} node {node.name!r}: {scale.shape} scales do not fit axis {axis} of "
                f"data of shape {shape}"
            )
        return xp.reshape(scale, (1,) * axis + (-1,) + (1,) * (len(shape) - axis - 1))
    count = -(-shape[axis] // block)
    if scale.shape != (*shape[:axis], count, *shape[axis + 1 :]):
        raise ModelError(
            f"{node.op} node {node.name!r}: scales of shape {scale.shape} are not one per block "
            f"of {block} along axis {axis} of data of shape {shape}"
        )
    values = xp.repeat(scale, block, axis=axis)
    return values[(slice(None),) * axis + (slice(shape[axis]),)]
