"""Pooling over windows, over everything, and its inverse."""

import math
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.registry import lowering, static
from jqnt.ops.window import Window, output_sizes, slide, taps, window

__all__ = ["average_pool", "global_average_pool", "lp_pool", "max_pool"]


@lowering("MaxPool", since=1, layout="channels_last")
def max_pool(node, x):
    """The maximum of each window, and where it lies in the flat ONNX tensor if asked.

    https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    view, out = _view(node, x)
    low = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else np.iinfo(x.dtype).min
    if len(node.outputs) < 2 or not node.outputs[1]:
        return slide(x, view, out, jnp.maximum, low)
    stacked = jnp.stack(list(taps(x, view, out, low)))
    first = jnp.argmax(stacked, axis=0)
    y = jnp.max(stacked, axis=0)
    where = _positions(view, out, x.shape[1:-1], node.attrs.get("storage_order", 0))
    flat = where.reshape(len(where), -1)[
        first.reshape(first.shape[0], -1, first.shape[-1]), np.arange(math.prod(out))[None, :, None]
    ]
    n, c, size = x.shape[0], x.shape[-1], math.prod(x.shape[1:-1])
    base = (np.arange(n)[:, None, None] * c + np.arange(c)[None, None, :]) * size
    indices = (flat + base).reshape(first.shape)
    return y, jnp.moveaxis(indices, -1, 1).astype(jnp.result_type(np.int64))


@lowering("AveragePool", since=1, layout="channels_last")
def average_pool(node, x):
    """The mean of each window, its padding counted where count_include_pad says so.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    view, out = _view(node, x)
    total = slide(x, view, out, jnp.add, 0)
    counts = np.ones((1, *out, 1))
    padded = bool(node.attrs.get("count_include_pad", 0))
    for i, (size, count) in enumerate(zip(x.shape[1:-1], out, strict=True)):
        before, after = view.pads[i]
        at = np.arange(count)[:, None] * view.strides[i] - before
        at = at + np.arange(view.kernel[i])[None, :] * view.dilations[i]
        inside = (at >= -before) & (at < size + after) if padded else (at >= 0) & (at < size)
        shape = [-1 if d == i + 1 else 1 for d in range(x.ndim)]
        counts = counts * np.maximum(inside.sum(1), 1).reshape(shape)
    return total / counts.astype(x.dtype)


@lowering("LpPool", since=1, layout="channels_last")
def lp_pool(node, x):
    """(sum |x|^p)^(1/p) over each window: https://onnx.ai/onnx/operators/onnx__LpPool.html"""
    view, out = _view(node, x)
    return _lp(node, x, lambda v: slide(v, view, out, jnp.add, 0))


@lowering("GlobalAveragePool", since=1, layout="channels_last")
def global_average_pool(node, x):
    """https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html"""
    return jnp.mean(x, axis=_spatial(x), keepdims=True)


@lowering("GlobalMaxPool", since=1, layout="channels_last")
def global_max_pool(node, x):
    """https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html"""
    return jnp.max(x, axis=_spatial(x), keepdims=True)


@lowering("GlobalLpPool", since=1, layout="channels_last")
def global_lp_pool(node, x):
    """https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html"""
    return _lp(node, x, lambda v: jnp.sum(v, axis=_spatial(x), keepdims=True))


@lowering("MaxUnpool", since=9, static=(2,))
def max_unpool(node, x, indices, output_shape=None):
    """Each value back to the place that `indices` names, zeros elsewhere.

    https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
    """
    kernel = tuple(node.attrs.get("kernel_shape", ()))
    view = window(node, x.shape[2:], kernel, transposed=True)
    inferred = tuple(
        (size - 1) * stride + k - sum(pads)
        for size, stride, k, pads in zip(x.shape[2:], view.strides, kernel, view.pads, strict=True)
    )
    shape = (*x.shape[:2], *inferred)
    if output_shape is not None:
        shape = tuple(int(d) for d in static(node, "output_shape", output_shape))
    if len(shape) != x.ndim:
        raise ModelError(f"MaxUnpool node {node.name!r}: output_shape {list(shape)} is no shape")
    # The indices count in the inferred output, a larger output_shape only surrounds it.
    plain = jnp.zeros(math.prod((*x.shape[:2], *inferred)), x.dtype)
    plain = plain.at[indices.reshape(-1)].set(x.reshape(-1)).reshape(*x.shape[:2], *inferred)
    widths = [(0, full - part, 0) for full, part in zip(shape, plain.shape, strict=True)]
    return lax.pad(plain, jnp.zeros((), x.dtype), widths)


def _view(node, x) -> tuple[Window, tuple[int, ...]]:
    if x.ndim < 3:
        raise ModelError(f"{node.op} node {node.name!r} needs spatial axes, got rank {x.ndim}")
    sizes = x.shape[1:-1]
    view = window(node, sizes, tuple(node.attrs.get("kernel_shape", ())))
    return view, output_sizes(node, view, sizes, bool(node.attrs.get("ceil_mode", 0)))


def _positions(view: Window, out: tuple[int, ...], sizes: tuple[int, ...], column_major: int):
    """(taps, *out): where each tap of each window lies in the flat spatial axes."""
    order = range(len(sizes)) if column_major else reversed(range(len(sizes)))
    step, weight = 1, [0] * len(sizes)
    for axis in order:
        weight[axis] = step
        step *= sizes[axis]
    rows = []
    for tap in product(*map(range, view.kernel)):
        row = np.zeros(out, np.int64)
        for i, count in enumerate(out):
            at = np.arange(count) * view.strides[i] - view.pads[i][0] + tap[i] * view.dilations[i]
            row = row + (at * weight[i]).reshape([-1 if d == i else 1 for d in range(len(out))])
        rows.append(row)
    return jnp.asarray(np.stack(rows))


def _lp(node, x, total):
    p = node.attrs.get("p", 2)
    power = total(jnp.abs(x) ** p)
    return power if p == 1 else power ** np.asarray(1 / p, x.dtype)


def _spatial(x) -> tuple[int, ...]:
    return tuple(range(1, x.ndim - 1))
