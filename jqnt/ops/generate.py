"""Operators that make a tensor from numbers: constants, fills, ranges."""

import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, dtype_of, namespace
from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("Constant")
def constant(node):
    """https://onnx.ai/onnx/operators/onnx__Constant.html"""
    kinds = {"value": None, "value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    ((key, value),) = ((k, v) for k, v in node.attrs.items() if k in kinds)
    return np.asarray(value, kinds[key])


@lowering("ConstantOfShape", static=(0,))
def constant_of_shape(node, shape):
    """https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html"""
    value = np.asarray(node.attrs.get("value", np.zeros(1, np.float32)))
    sizes = tuple(static(node, "the shape", shape).tolist())
    # a view: a shape of gigabytes costs nothing until someone computes with it
    return np.broadcast_to(value.reshape(()), sizes)


@lowering("Range", static=(0, 1, 2))
def range_(node, start, limit, delta):
    """https://onnx.ai/onnx/operators/onnx__Range.html"""
    numbers = (static(node, "its bounds", v).reshape(()) for v in (start, limit, delta))
    first, end, step = (n.astype(np.float64) if n.dtype.kind == "V" else n for n in numbers)
    stash = node.attrs.get("stash_type")
    if stash is not None and start.dtype.itemsize == 2:
        wide = dtype_of(np, stash)
        values = np.arange(wide.type(first), float(end), float(step), dtype=wide)
    else:
        values = np.arange(first.item(), end.item(), step.item())
    return values.astype(start.dtype)


@lowering("EyeLike")
def eye_like(node, x):
    """https://onnx.ai/onnx/operators/onnx__EyeLike.html"""
    sizes = x.shape if x.ndim == 2 else x.shape * 2
    if len(sizes) != 2:
        raise ModelError(f"EyeLike node {node.name!r}: the input has rank {x.ndim}, not 1 or 2")
    dtype = dtype_of(np, node.attrs["dtype"]) if "dtype" in node.attrs else np.dtype(x.dtype)
    return np.eye(*sizes, k=node.attrs.get("k", 0), dtype=dtype)


@lowering("OneHot", static=(1,))
def one_hot(node, indices, depth, values):
    """https://onnx.ai/onnx/operators/onnx__OneHot.html"""
    xp = namespace(indices, values)
    size = int(static(node, "the depth", depth).reshape(-1)[0])
    axis = axis_of(node, node.attrs.get("axis", -1), indices.ndim + 1)
    wrapped = xp.expand_dims(xp.where(indices < 0, indices + size, indices), axis)
    places = np.arange(size).reshape((1,) * axis + (-1,) + (1,) * (indices.ndim - axis))
    off, on = (xp.reshape(values[i], (1,) * wrapped.ndim) for i in range(2))
    return xp.where(wrapped == places.astype(wrapped.dtype), on, off)
