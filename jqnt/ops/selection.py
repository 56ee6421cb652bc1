"""Operators that order or search: arg-extremes, the k largest, cumulative sums, masks of order."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.namespace import aligned, axis_of, canonical, namespace, numeric
from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("ArgMax")
def arg_max(node, x):
    """https://onnx.ai/onnx/operators/onnx__ArgMax.html"""
    return _extreme(node, x, "argmax")


@lowering("ArgMin")
def arg_min(node, x):
    """https://onnx.ai/onnx/operators/onnx__ArgMin.html"""
    return _extreme(node, x, "argmin")


def _extreme(node, x, name):
    xp = namespace(x)
    axis = axis_of(node, node.attrs.get("axis", 0), x.ndim)
    last = bool(node.attrs.get("select_last_index", 0))
    found = getattr(xp, name)(xp.flip(x, axis) if last else x, axis=axis)
    if last:
        found = x.shape[axis] - 1 - found
    found = xp.asarray(found).astype(canonical(xp, np.int64))
    return xp.expand_dims(found, axis) if node.attrs.get("keepdims", 1) else found


@lowering("TopK", since=1)
def top_k_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__TopK.html (k is an attribute)"""
    return _top(node, x, node.attrs["k"])


@lowering("TopK", since=10, static=(1,))
def top_k(node, x, k):
    """https://onnx.ai/onnx/operators/onnx__TopK.html"""
    return _top(node, x, int(static(node, "k", k).reshape(())))


def _top(node, x, k):
    xp = namespace(x)
    axis = axis_of(node, node.attrs.get("axis", -1), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ModelError(
            f"TopK node {node.name!r}: k is {k}, axis {axis} of the input has {x.shape[axis]}"
        )
    rows = xp.moveaxis(x, axis, -1)
    # negation overflows at the smallest integer, the complement reverses the order as well
    reverse = (lambda v: -v) if numeric(x.dtype) == "f" else (lambda v: ~v)
    if not node.attrs.get("largest", 1):
        rows = reverse(rows)
    if xp is jnp:
        values, places = lax.top_k(rows, k)
    else:
        places = np.argsort(reverse(rows), axis=-1, kind="stable")[..., :k]
        values = np.take_along_axis(rows, places, axis=-1)
    if not node.attrs.get("largest", 1):
        values = reverse(values)
    places = places.astype(canonical(xp, np.int64))
    return xp.moveaxis(values, -1, axis), xp.moveaxis(places, -1, axis)


@lowering("CumSum", static=(1,))
def cum_sum(node, x, axis):
    """https://onnx.ai/onnx/operators/onnx__CumSum.html"""
    return _cumulative(node, x, axis, "cumsum", 0)


@lowering("CumProd", static=(1,))
def cum_prod(node, x, axis):
    """https://onnx.ai/onnx/operators/onnx__CumProd.html"""
    return _cumulative(node, x, axis, "cumprod", 1)


def _cumulative(node, x, axis, name, neutral):
    xp = namespace(x)
    axis = axis_of(node, int(static(node, "the axis", axis).reshape(())), x.ndim)
    reverse = bool(node.attrs.get("reverse", 0))
    rows = xp.flip(x, axis) if reverse else x
    if node.attrs.get("exclusive", 0):
        rest = lax.slice_in_dim(rows, 0, -1, axis=axis) if xp is jnp else None
        rest = np.take(rows, range(x.shape[axis] - 1), axis=axis) if rest is None else rest
        first = xp.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), neutral, x.dtype)
        rows = xp.concatenate([first, rest], axis=axis)
    total = getattr(xp, name)(rows, axis=axis, dtype=x.dtype)
    return xp.flip(total, axis) if reverse else total


@lowering("Trilu", since=14)
def trilu(node, x, k=None):
    """https://onnx.ai/onnx/operators/onnx__Trilu.html"""
    xp = namespace(x, k)
    rows, columns = np.indices(x.shape[-2:])
    offset = 0 if k is None else xp.reshape(k, (1, 1))
    distance = columns - rows
    keep = distance >= offset if node.attrs.get("upper", 1) else distance <= offset
    keep, x = aligned(xp, xp.asarray(keep), x)
    return xp.where(keep, x, xp.zeros((), x.dtype))


@lowering("ReverseSequence")
def reverse_sequence(node, x, lengths):
    """https://onnx.ai/onnx/operators/onnx__ReverseSequence.html"""
    xp = namespace(x, lengths)
    batch, time = node.attrs.get("batch_axis", 1), node.attrs.get("time_axis", 0)
    rows = xp.moveaxis(x, (batch, time), (0, 1))
    steps = np.arange(rows.shape[1])[None, :]
    lengths = xp.reshape(lengths, (-1, 1))
    places = xp.where(steps < lengths, lengths - 1 - steps, steps)
    places = xp.reshape(places, places.shape + (1,) * (rows.ndim - 2))
    return xp.moveaxis(xp.take_along_axis(rows, places, axis=1), (0, 1), (batch, time))
