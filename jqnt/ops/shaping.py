"""Operators that change a tensor's shape and keep its elements in order."""

import math

import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, namespace, pointwise
from jqnt.ops.registry import lowering, static

__all__ = []


@pointwise("Identity")
def identity(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Identity.html"""
    return x


@lowering("Reshape", since=1)
def reshape_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Reshape.html (shape is an attribute)"""
    return _reshaped(node, x, node.attrs["shape"])


@lowering("Reshape", since=5, static=(1,))
def reshape(node, x, shape):
    """https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    return _reshaped(node, x, static(node, "the shape", shape).tolist())


def _reshaped(node, x, shape):
    if not node.attrs.get("allowzero", 0):
        if any(size == 0 and i >= x.ndim for i, size in enumerate(shape)):
            raise ModelError(
                f"Reshape node {node.name!r}: the shape {list(shape)} copies an axis that the "
                f"input of shape {x.shape} does not have"
            )
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    known = math.prod(size for size in shape if size != -1)
    free = sum(size == -1 for size in shape)
    fits = known == x.size if not free else free == 1 and known > 0 and x.size % known == 0
    if not fits:
        raise ModelError(
            f"Reshape node {node.name!r}: an input of shape {x.shape} does not fit into "
            f"{list(shape)}"
        )
    return namespace(x).reshape(x, tuple(shape))


@lowering("Flatten")
def flatten(node, x):
    """https://onnx.ai/onnx/operators/onnx__Flatten.html"""
    axis = node.attrs.get("axis", 1)
    axis = axis if axis == x.ndim else axis_of(node, axis, x.ndim)
    return namespace(x).reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@lowering("Squeeze", since=1)
def squeeze_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Squeeze.html (axes are an attribute)"""
    return _squeezed(node, x, node.attrs.get("axes"))


@lowering("Squeeze", since=13, static=(1,))
def squeeze(node, x, axes=None):
    """https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    return _squeezed(node, x, None if axes is None else static(node, "axes", axes).tolist())


def _squeezed(node, x, axes):
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1]
    axes = {axis_of(node, axis, x.ndim) for axis in axes}
    if any(x.shape[i] != 1 for i in axes):
        raise ModelError(
            f"Squeeze node {node.name!r}: axes {sorted(axes)} of the shape {x.shape} are not "
            f"all of length 1"
        )
    return namespace(x).reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


@lowering("Unsqueeze", since=1)
def unsqueeze_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Unsqueeze.html (axes are an attribute)"""
    return _unsqueezed(node, x, node.attrs["axes"])


@lowering("Unsqueeze", since=13, static=(1,))
def unsqueeze(node, x, axes):
    """https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    return _unsqueezed(node, x, static(node, "axes", axes).ravel().tolist())


def _unsqueezed(node, x, axes):
    rank = x.ndim + len(axes)
    new = {axis_of(node, axis, rank) for axis in axes}
    if len(new) < len(axes):
        raise ModelError(f"Unsqueeze node {node.name!r}: axes {list(axes)} are not distinct")
    sizes = iter(x.shape)
    return namespace(x).reshape(x, tuple(1 if i in new else next(sizes) for i in range(rank)))


@lowering("Shape")
def shape_(node, x):
    """https://onnx.ai/onnx/operators/onnx__Shape.html"""
    return np.asarray(x.shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)


@lowering("Size")
def size(node, x):
    """https://onnx.ai/onnx/operators/onnx__Size.html"""
    return np.asarray(x.size, np.int64)
