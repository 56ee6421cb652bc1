"""Convolutions and matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.graph.ir import Node
from jqnt.ops.convolution import Geometry, convolve, input_gradient
from jqnt.ops.registry import lowering
from jqnt.ops.window import Window, output_sizes, per_axis, window

__all__ = ["conv", "conv_transpose", "gemm", "matmul", "transposed_geometry"]


@lowering("Conv", since=1, layout="channels_last")
def conv(node, x, w, b=None):
    """https://onnx.ai/onnx/operators/onnx__Conv.html"""
    groups = node.attrs.get("group", 1)
    if x.ndim < 3 or w.ndim != x.ndim:
        raise ModelError(
            f"Conv node {node.name!r}: input of rank {x.ndim} and weight of rank {w.ndim}"
        )
    if groups < 1 or x.shape[-1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ModelError(
            f"Conv node {node.name!r}: the input has {x.shape[-1]} channels, the weight takes "
            f"{groups} x {w.shape[1]} and gives {w.shape[0]}"
        )
    x, w = (v.astype(jnp.promote_types(x.dtype, w.dtype)) for v in (x, w))
    sizes = x.shape[1:-1]
    view = window(node, sizes, w.shape[2:])
    y = convolve(x, w, Geometry(sizes, view, output_sizes(node, view, sizes), groups))
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + (-1,))


@lowering("ConvTranspose", since=1, layout="channels_last")
def conv_transpose(node, x, w, b=None):
    """The input gradient of a convolution, its output size chosen by pads or output_shape.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    groups = node.attrs.get("group", 1)
    counts = x.shape[1:-1]
    if x.ndim < 3 or w.ndim != x.ndim or groups < 1 or x.shape[-1] != w.shape[0]:
        raise ModelError(
            f"ConvTranspose node {node.name!r}: input {list(x.shape)} (channels last), weight "
            f"{list(w.shape)}, {groups} groups"
        )
    geometry = transposed_geometry(node, counts, w.shape[2:])
    y = input_gradient(x, w, geometry)
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + (-1,))


def transposed_geometry(node: Node, counts: tuple[int, ...], kernel: tuple[int, ...]) -> Geometry:
    """The convolution whose input gradient a ConvTranspose over spatial `counts` is: its `sizes`
    are those of the result, its `pads` what is cut off."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    plain = {k: v for k, v in node.attrs.items() if k != "auto_pad"}
    if auto != "NOTSET":
        plain.pop("pads", None)
    view = window(node.replace(attrs=plain), counts, kernel, transposed=True)
    extra = per_axis(node, "output_padding", len(counts), 0)
    wanted = tuple(node.attrs.get("output_shape", ()))[-len(counts) :]
    if not wanted and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(counts, view.strides, strict=True))
    sizes, pads = [], []
    for i, (count, stride, span) in enumerate(zip(counts, view.strides, view.spans, strict=True)):
        full = (count - 1) * stride + span
        before, after = view.pads[i]
        if wanted:
            total = full + extra[i] - wanted[i]
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after = total - before
        size = full + extra[i] - before - after
        if size < 1:
            raise ModelError(f"ConvTranspose node {node.name!r}: axis {i} would have size {size}")
        sizes.append(size)
        pads.append((before, full - size - before))
    return Geometry(
        tuple(sizes), view._replace(pads=tuple(pads)), counts, node.attrs.get("group", 1)
    )


@lowering("CausalConvWithState", since=27)
def causal_conv_with_state(node, x, w, b=None, past=None):
    """A depthwise convolution over the past only, whose last inputs are the state.

    https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html
    """
    length, taps = x.shape[2], w.shape[2]
    if past is None:
        past = jnp.zeros((*x.shape[:2], taps - 1), x.dtype)
    known = jnp.concatenate([past, x], 2)
    view = Window((taps,), (1,), (1,), ((0, 0),))
    geometry = Geometry((known.shape[2],), view, (length,), x.shape[1])
    y = convolve(known.transpose(0, 2, 1), w, geometry).transpose(0, 2, 1)
    y = y if b is None else y + b.reshape(1, -1, 1)
    if node.attrs.get("activation", "none") in ("silu", "swish"):
        y = jax.nn.silu(y)
    return y, known[:, :, known.shape[2] - (taps - 1) :]


@lowering("Einsum", since=12)
def einsum(node, *operands):
    """https://onnx.ai/onnx/operators/onnx__Einsum.html"""
    equation = node.attrs["equation"].replace(" ", "")
    if all(isinstance(x, np.ndarray) for x in operands):
        return np.asarray(np.einsum(equation, *operands))
    return jnp.einsum(equation, *operands)


@lowering("Det", since=11)
def det(node, x):
    """https://onnx.ai/onnx/operators/onnx__Det.html"""
    return jnp.linalg.det(x)


@lowering("Gemm", since=1)
def gemm(node, a, b, c=None):
    """alpha * A' B' + beta * C: https://onnx.ai/onnx/operators/onnx__Gemm.html"""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    a = a.T if node.attrs.get("transA", 0) else a
    b = b.T if node.attrs.get("transB", 0) else b
    y = a @ b
    if alpha != 1:
        y = y * np.asarray(alpha, y.dtype)
    if c is None:
        return y
    c = c if beta == 1 else c * np.asarray(beta, y.dtype)
    return y + c.reshape((1,) * (2 - c.ndim) + c.shape)


@lowering("MatMul", since=1)
def matmul(node, a, b):
    """numpy's matmul: https://onnx.ai/onnx/operators/onnx__MatMul.html"""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.asarray(np.matmul(a, b))
    rank = max(np.ndim(a), np.ndim(b))
    if min(np.ndim(a), np.ndim(b)) > 1:
        a, b = (m.reshape((1,) * (rank - m.ndim) + m.shape) for m in (a, b))
    return jnp.matmul(a, b)


@lowering("FusedMatMul", domain="com.microsoft")
def fused_matmul(node, a, b):
    """alpha * A' B', with the last two axes, or the batch axes, of an operand in another order.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    a, b = (_turned(node, m, side) for m, side in ((a, "A"), (b, "B")))
    y = matmul(node, a, b)
    alpha = node.attrs.get("alpha", 1.0)
    return y if alpha == 1 else y * np.asarray(alpha, y.dtype)


def _turned(node, x, side):
    """transBatch moves the first axis behind the others before the last; trans swaps the last."""
    order = list(range(x.ndim))
    if node.attrs.get(f"transBatch{side}", 0) and x.ndim > 2:
        order = [*order[1:-1], 0, order[-1]]
    if node.attrs.get(f"trans{side}", 0) and x.ndim > 1:
        order[-2:] = order[:-3:-1]
    return x.transpose(order)
