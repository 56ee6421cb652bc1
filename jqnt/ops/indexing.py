"""Operators that read elements by position: slices and gathers."""

import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, namespace
from jqnt.ops.registry import lowering, static

__all__ = ["coordinates", "grid"]


@lowering("Slice", since=1)
def slice_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Slice.html (bounds are attributes)"""
    starts, ends = node.attrs["starts"], node.attrs["ends"]
    return _sliced(node, x, starts, ends, node.attrs.get("axes"), None)


@lowering("Slice", since=10, static=(1, 2, 3, 4))
def slice_(node, x, starts, ends, axes=None, steps=None):
    """https://onnx.ai/onnx/operators/onnx__Slice.html"""

    def numbers(what, value):
        return None if value is None else static(node, what, value).ravel().tolist()

    return _sliced(
        node,
        x,
        numbers("starts", starts),
        numbers("ends", ends),
        numbers("axes", axes),
        numbers("steps", steps),
    )


def _sliced(node, x, starts, ends, axes, steps):
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelError(f"Slice node {node.name!r}: starts, ends, axes and steps differ in length")
    picks = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis_of(node, axis, x.ndim)
        picks[axis] = _bounds(node, x.shape[axis], start, end, step)
    return x[tuple(picks)]


def _bounds(node, size, start, end, step):
    """ONNX clamps both ends into the axis; `None` is Python's word for before the first."""
    if step == 0:
        raise ModelError(f"Slice node {node.name!r}: a step is 0")
    start, end = (value + size if value < 0 else value for value in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step) if size else slice(0, 0, 1)


@lowering("Gather")
def gather(node, x, indices):
    """https://onnx.ai/onnx/operators/onnx__Gather.html"""
    xp = namespace(x, indices)
    axis = axis_of(node, node.attrs.get("axis", 0), x.ndim)
    if isinstance(indices, np.ndarray):
        _check_range(node, indices, x.shape[axis], axis)
    result = xp.take(x, indices, axis=axis)
    return np.asarray(result) if xp is np else result


@lowering("GatherElements")
def gather_elements(node, x, indices):
    """https://onnx.ai/onnx/operators/onnx__GatherElements.html"""
    xp = namespace(x, indices)
    axis = axis_of(node, node.attrs.get("axis", 0), x.ndim)
    if isinstance(indices, np.ndarray):
        _check_range(node, indices, x.shape[axis], axis)
    # the other axes of indices may be shorter than the data's
    x = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return xp.take_along_axis(x, indices, axis=axis)


@lowering("GatherND")
def gather_nd(node, x, indices):
    """https://onnx.ai/onnx/operators/onnx__GatherND.html"""
    batch, rank = node.attrs.get("batch_dims", 0), indices.ndim - 1
    result = x[(*grid(indices.shape[:batch], rank), *coordinates(indices))]
    return np.asarray(result) if namespace(x, indices) is np else result


def coordinates(indices):
    """The last axis of `indices` as one index array per coordinate."""
    return tuple(indices[..., i] for i in range(indices.shape[-1]))


def grid(sizes: tuple[int, ...], rank: int):
    """For each of the leading axes an index array that counts along it, of rank `rank`."""
    return tuple(
        np.arange(size).reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))
        for axis, size in enumerate(sizes)
    )


def _check_range(node, indices, size, axis):
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise ModelError(
            f"{node.op} node {node.name!r}: indices from {indices.min()} to {indices.max()} are "
            f"outside axis {axis} of length {size}"
        )
