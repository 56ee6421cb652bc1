"""The com.microsoft operators on quantized tensors that onnxruntime's quantizer writes.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
Each is its float operator between dequantization and quantization, in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError, UnsupportedError
from jqnt.ops.integer_products import product, requantized
from jqnt.ops.namespace import aligned, axis_of
from jqnt.ops.quantized import dequantized, quantized, quotient
from jqnt.ops.registry import lowering
from jqnt.ops.softmax import softmax
from jqnt.ops.window import output_sizes, slide, window

__all__ = []

_MICROSOFT = "com.microsoft"


def _real(x, scale, zero):
    """The numbers that the codes stand for, in float32."""
    zero = None if zero is None else zero.reshape(())
    return dequantized(jnp, jnp.asarray(x), scale.reshape(()), zero)


def _integers(x, zero):
    """The codes less their zero point, in int32."""
    x = jnp.asarray(x).astype(jnp.int32)
    return x if zero is None else x - zero.astype(np.int32).reshape(())


def _codes(y, scale, zero, dtype):
    """saturate(round_half_even(y / scale) + zero)."""
    zero = None if zero is None else zero.reshape(())
    dtype = np.dtype(dtype if zero is None else zero.dtype)
    return quantized(jnp, quotient(jnp, y, scale.reshape(())), zero, dtype)


@lowering("QLinearAdd", domain=_MICROSOFT)
def qlinear_add(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None):
    """a + b"""
    real = aligned(jnp, _real(a, a_scale, a_zero), _real(b, b_scale, b_zero))
    return _codes(real[0] + real[1], y_scale, y_zero, a.dtype)


@lowering("QLinearMul", domain=_MICROSOFT)
def qlinear_mul(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero=None):
    """a * b"""
    left, right = aligned(jnp, _integers(a, a_zero), _integers(b, b_zero))
    zero = np.zeros((), a.dtype) if y_zero is None else y_zero.reshape(())
    scale = a_scale.reshape(()) * b_scale.reshape(())
    return requantized(left * right, scale, y_scale.reshape(()), zero)


@lowering("QLinearWhere", domain=_MICROSOFT)
def qlinear_where(node, condition, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    """condition ? a : b"""
    real = aligned(jnp, condition, _real(a, a_scale, a_zero), _real(b, b_scale, b_zero))
    return _codes(jnp.where(*real), y_scale, y_zero, a.dtype)


@lowering("QLinearConcat", domain=_MICROSOFT)
def qlinear_concat(node, y_scale, y_zero, *triples):
    """The tensors of (codes, scale, zero point) triples along `axis`."""
    if not triples or len(triples) % 3:
        raise ModelError(f"QLinearConcat node {node.name!r}: inputs are no triples")
    parts = [_real(*triples[i : i + 3]) for i in range(0, len(triples), 3)]
    axis = axis_of(node, node.attrs["axis"], parts[0].ndim)
    return _codes(jnp.concatenate(parts, axis=axis), y_scale, y_zero, triples[0].dtype)


@lowering("QLinearSigmoid", domain=_MICROSOFT)
def qlinear_sigmoid(node, x, x_scale, x_zero, y_scale, y_zero=None):
    """1 / (1 + exp(-x))"""
    return _codes(jax.nn.sigmoid(_real(x, x_scale, x_zero)), y_scale, y_zero, x.dtype)


@lowering("QLinearLeakyRelu", domain=_MICROSOFT)
def qlinear_leaky_relu(node, x, x_scale, x_zero, y_scale, y_zero=None):
    """x >= 0 ? x : alpha * x"""
    real = _real(x, x_scale, x_zero)
    slope = np.float32(node.attrs.get("alpha", 0.01))
    return _codes(jnp.where(real >= 0, real, real * slope), y_scale, y_zero, x.dtype)


@lowering("QLinearSoftmax", domain=_MICROSOFT)
def qlinear_softmax(node, x, x_scale, x_zero, y_scale, y_zero=None):
    """Softmax over `axis`, or over all from it on where `opset` is below 13."""
    axis = axis_of(node, node.attrs.get("axis", -1), x.ndim)
    axes = (axis,) if node.attrs.get("opset", 13) >= 13 else tuple(range(axis, x.ndim))
    return _codes(softmax(jnp, _real(x, x_scale, x_zero), axes), y_scale, y_zero, x.dtype)


@lowering("QLinearGlobalAveragePool", domain=_MICROSOFT)
def qlinear_global_average_pool(node, x, x_scale, x_zero, y_scale, y_zero):
    """The mean over the spatial axes, from the exact sum of codes."""
    start = 1 if node.attrs.get("channels_last", 0) else 2
    axes = tuple(range(start, start + x.ndim - 2))
    total = jnp.sum(_integers(x, x_zero), axes, keepdims=True)
    count = np.float32(math.prod(x.shape[i] for i in axes))
    return requantized(total, x_scale.reshape(()), y_scale.reshape(()) * count, y_zero.reshape(()))


@lowering("QLinearAveragePool", domain=_MICROSOFT)
def qlinear_average_pool(node, x, x_scale, x_zero, y_scale, y_zero=None):
    """The mean over windows; `count_include_pad` counts the padding too."""
    real = _real(x, x_scale, x_zero)
    last = bool(node.attrs.get("channels_last", 0))
    real = real if last else jnp.moveaxis(real, 1, -1)
    sizes = real.shape[1:-1]
    view = window(node, sizes, tuple(node.attrs["kernel_shape"]))
    out = output_sizes(node, view, sizes, bool(node.attrs.get("ceil_mode", 0)))
    total = slide(real, view, out, jnp.add, 0.0)
    if node.attrs.get("count_include_pad", 0):
        count = np.float32(math.prod(view.kernel))
    else:
        count = slide(jnp.ones((1, *sizes, 1), jnp.float32), view, out, jnp.add, 0.0)
    mean = total / count
    return _codes(mean if last else jnp.moveaxis(mean, -1, 1), y_scale, y_zero, x.dtype)


@lowering("QGemm", domain=_MICROSOFT)
def qgemm(node, a, a_scale, a_zero, b, b_scale, b_zero, c=None, y_scale=None, y_zero=None):
    """alpha * A' B' + C, C in int32 of scale alpha * a_scale * b_scale; float without y_scale."""
    a = a.T if node.attrs.get("transA", 0) else a
    b = b.T if node.attrs.get("transB", 0) else b
    total = product(node, a, b, a_zero, b_zero)
    if c is not None:
        total = total + c.reshape((1,) * (2 - c.ndim) + c.shape)
    columns = b_scale.reshape(()) if b_scale.size == 1 else b_scale.reshape(1, -1)
    scale = np.float32(node.attrs.get("alpha", 1.0)) * a_scale.reshape(()) * columns
    if y_scale is None:
        return total.astype(np.float32) * scale
    zero = np.zeros((), a.dtype) if y_zero is None else y_zero.reshape(())
    return requantized(total, scale, y_scale.reshape(()), zero)


@lowering("MatMulNBits", domain=_MICROSOFT)
def matmul_nbits(node, a, b, scales, zero_points=None, group=None, bias=None):
    """a W^T with W (N, K) of `bits` bits, packed along K in blocks of `block_size`.

    b (N, blocks, bytes) holds the lowest bits first; zero points are packed along the blocks,
    or given in the type of the scales, and 2^(bits-1) without.
    """
    n, k = node.attrs["N"], node.attrs["K"]
    bits, block = node.attrs.get("bits", 4), node.attrs["block_size"]
    if bits not in (2, 4, 8) or (group is not None and group.size):
        raise UnsupportedError(
            f"MatMulNBits node {node.name!r}: {bits} bits"
            f"{' with reordered groups' if group is not None else ''}; 2, 4 and 8 bits without "
            f"g_idx are supported"
        )
    blocks = -(-k // block)
    codes = _unpacked(b.reshape(n, -1), bits)[:, : blocks * block].reshape(n, blocks, block)
    if zero_points is None:
        zero = np.float32(2 ** (bits - 1))
    elif zero_points.dtype == np.uint8:
        zero = _unpacked(zero_points.reshape(n, -1), bits)[:, :blocks, None].astype(np.float32)
    else:
        zero = zero_points.reshape(n, blocks, 1).astype(np.float32)
    w = (codes.astype(np.float32) - zero) * scales.reshape(n, blocks, 1).astype(np.float32)
    y = jnp.matmul(a, w.reshape(n, -1)[:, :k].T.astype(a.dtype))
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _unpacked(packed, bits):
    """uint8 (rows, bytes) -> uint8 (rows, bytes * 8 / bits), the lowest bits first."""
    mask = np.uint8(2**bits - 1)
    parts = [(packed >> np.uint8(shift)) & mask for shift in range(0, 8, bits)]
    stacked = jnp.stack(parts, -1) if not isinstance(packed, np.ndarray) else np.stack(parts, -1)
    return stacked.reshape(packed.shape[0], -1)
