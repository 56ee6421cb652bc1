"""Convolutions and matrix products of integers, exact in int32, and their requantization.

Operands stay 8 bits wide, where XLA's products are fast: unsigned ones are shifted to signed,
and zero points are subtracted from the sums:
sum (a - p)(b - q) = sum a b - p sum b - q sum a + K p q.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import UnsupportedError
from jqnt.ops.int8_products import convolve, matmul
from jqnt.ops.quantized import quantized
from jqnt.ops.registry import lowering
from jqnt.ops.window import window

__all__ = ["product", "requantized"]


@lowering("ConvInteger", since=10, layout="channels_last")
def conv_integer(node, x, w, x_zero=None, w_zero=None):
    """https://onnx.ai/onnx/operators/onnx__ConvInteger.html"""
    return _convolution(node, x, w, x_zero, w_zero)


@lowering("QLinearConv", since=10, layout="channels_last")
def qlinear_conv(node, x, xs, xz, w, ws, wz, ys, yz, bias=None):
    """https://onnx.ai/onnx/operators/onnx__QLinearConv.html"""
    total = _convolution(node, x, w, xz, wz)
    if bias is not None:
        total = total + bias.reshape((1,) * (total.ndim - 1) + (-1,))
    ws = ws.reshape((1,) * (total.ndim - 1) + (-1,)) if ws.size > 1 else ws.reshape(())
    return requantized(total, xs.reshape(()) * ws, ys.reshape(()), yz.reshape(()))


@lowering("MatMulInteger", since=10)
def matmul_integer(node, a, b, a_zero=None, b_zero=None):
    """https://onnx.ai/onnx/operators/onnx__MatMulInteger.html"""
    return product(node, a, b, a_zero, b_zero)


@lowering("QLinearMatMul", since=10)
def qlinear_matmul(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    """https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html"""
    total = product(node, a, b, a_zero, b_zero)
    a_scale, b_scale = _along(a_scale, -2, total.ndim), _along(b_scale, -1, total.ndim)
    y_scale, y_zero = (_along(v, -2, total.ndim) for v in (y_scale, y_zero))
    return requantized(total, a_scale * b_scale, y_scale, y_zero)


def requantized(total, scale, y_scale, y_zero):
    """saturate(round_half_even(total * (scale / y_scale)) + y_zero), in float32."""
    factor = scale.astype(np.float32) / y_scale.astype(np.float32)
    return quantized(jnp, total.astype(jnp.float32) * factor, y_zero, np.dtype(y_zero.dtype))


def product(node, a, b, a_zero, b_zero):
    """int32 matmul of (a - a_zero) and (b - b_zero); zero points per row of a, column of b."""
    a, p = _signed(node, a, a_zero)
    b, q = _signed(node, b, b_zero)
    rank = max(a.ndim, b.ndim)
    if min(a.ndim, b.ndim) > 1:
        a, b = (jnp.reshape(m, (1,) * (rank - m.ndim) + m.shape) for m in (a, b))
    total = matmul(a, b)
    if p is None and q is None:
        return total
    both = min(a.ndim, b.ndim) > 1
    rows = jnp.sum(a, axis=-1, keepdims=both, dtype=jnp.int32)
    columns = jnp.sum(b, axis=-2 if b.ndim > 1 else 0, keepdims=both, dtype=jnp.int32)
    p = None if p is None else _along(p, -2, total.ndim)
    q = None if q is None else _along(q, -1, total.ndim)
    if p is not None:
        total = total - p * columns
    if q is not None:
        total = total - q * rows
    return total if p is None or q is None else total + a.shape[-1] * p * q


def _convolution(node, x, w, x_zero, w_zero):
    """int32 sums of channels-last (x - x_zero) with OIHW (w - w_zero); padding is x_zero."""
    x, p = _signed(node, x, x_zero)
    w, q = _signed(node, w, w_zero)
    view = window(node, x.shape[1:-1], w.shape[2:])
    fill = jnp.zeros((), x.dtype) if p is None else jnp.reshape(p, ()).astype(x.dtype)
    x = lax.pad(x, fill, [(0, 0, 0), *((*pad, 0) for pad in view.pads), (0, 0, 0)])

    def convolved(weight, groups):
        return convolve(x, jnp.moveaxis(weight, (1, 0), (-2, -1)), view, groups)

    groups = node.attrs.get("group", 1)
    total = convolved(w, groups)
    last = (1,) * (total.ndim - 1) + (-1,)
    if p is not None:
        sums = jnp.sum(w, axis=tuple(range(1, w.ndim)), dtype=jnp.int32)
        total = total - jnp.reshape(p, ()) * sums.reshape(last)
    if q is not None:
        ones = convolved(jnp.ones((groups, *w.shape[1:]), w.dtype), groups)
        sums = jnp.repeat(ones, w.shape[0] // groups, axis=-1)
        q = jnp.reshape(q, last)
        total = total - q * sums
        if p is not None:
            total = total + int(np.prod(w.shape[1:])) * jnp.reshape(p, ()) * q
    return total


def _signed(node, x, zero):
    """(int8 codes, int32 zero point or None where it is zero) of 8-bit codes."""
    if x.dtype not in (np.int8, np.uint8):
        raise UnsupportedError(
            f"{node.op} node {node.name!r} has operands of type {x.dtype}; int8 and uint8 are "
            f"supported"
        )
    offset = 128 if x.dtype == np.uint8 else 0
    if offset:
        x = lax.bitcast_convert_type(jnp.asarray(x) ^ jnp.uint8(128), jnp.int8)
    known = zero is None or isinstance(zero, np.ndarray)
    if known and not offset and (zero is None or not zero.any()):
        return jnp.asarray(x), None
    zero = np.zeros((), np.int32) if zero is None else zero
    return jnp.asarray(x), zero.astype(np.int32) - offset


def _along(value, axis, rank):
    """A scalar, or a vector that goes along `axis` of a tensor of `rank`, or one of its rank."""
    if value.size == 1:
        return value.reshape(())
    if value.ndim > 1 or rank < 2:
        return value.reshape((1,) * (rank - value.ndim) + value.shape)
    return value.reshape((1,) * (rank - 2) + ((-1, 1) if axis == -2 else (1, -1)))
