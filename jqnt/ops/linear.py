"""Convolutions and matrix products."""

import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.convolution import Geometry, convolve
from jqnt.ops.registry import lowering
from jqnt.ops.window import output_sizes, window

__all__ = ["conv", "gemm", "matmul"]


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
    sizes = x.shape[1:-1]
    view = window(node, sizes, w.shape[2:])
    y = convolve(x, w, Geometry(sizes, view, output_sizes(node, view, sizes), groups))
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + (-1,))


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
