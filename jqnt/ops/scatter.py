"""Operators that write elements by position."""

import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.indexing import coordinates, grid
from jqnt.ops.namespace import axis_of, namespace
from jqnt.ops.registry import lowering

__all__ = []


@lowering("ScatterElements")
@lowering("Scatter")
def scatter_elements(node, x, indices, updates):
    """https://onnx.ai/onnx/operators/onnx__ScatterElements.html"""
    axis = axis_of(node, node.attrs.get("axis", 0), x.ndim)
    places = list(grid(indices.shape, x.ndim))
    places[axis] = indices
    return _written(node, x, tuple(places), updates)


@lowering("ScatterND")
def scatter_nd(node, x, indices, updates):
    """https://onnx.ai/onnx/operators/onnx__ScatterND.html"""
    return _written(node, x, coordinates(indices), updates)


def _written(node, x, places, updates):
    reduction = node.attrs.get("reduction", "none")
    if reduction not in ("none", "add", "mul", "min", "max"):
        raise ModelError(f"{node.op} node {node.name!r}: reduction {reduction!r} is not known")
    if namespace(x, updates, *places) is jnp:
        writer = jnp.asarray(x).at[places]
        name = {"none": "set", "mul": "multiply"}.get(reduction, reduction)
        return getattr(writer, name)(updates)
    out = x.copy()
    if reduction == "none":
        out[places] = updates
        return out
    functions = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
    functions[reduction].at(out, places, updates)
    return out


@lowering("TensorScatter", since=24)
def tensor_scatter(node, cache, update, write_indices=None):
    """https://onnx.ai/onnx/operators/onnx__TensorScatter.html"""
    xp = namespace(cache, update, write_indices)
    axis = axis_of(node, node.attrs.get("axis", -2), cache.ndim)
    if axis == 0:
        raise ModelError(f"TensorScatter node {node.name!r}: axis 0 is the batch")
    places = list(grid(update.shape, cache.ndim))
    if write_indices is not None:
        starts = xp.reshape(write_indices, (-1,) + (1,) * (cache.ndim - 1))
        places[axis] = starts + places[axis].astype(write_indices.dtype)
    if node.attrs.get("mode", "linear") == "circular":
        places[axis] = places[axis] % cache.shape[axis]
    if xp is jnp:
        return jnp.asarray(cache).at[tuple(places)].set(update)
    out = cache.copy()
    out[tuple(places)] = update
    return out
