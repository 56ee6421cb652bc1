"""Which array library an operator computes with: numpy for static values, else jax.numpy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from onnx import helper

from jqnt.errors import ModelError
from jqnt.graph.ir import Node
from jqnt.ops.registry import lowering

__all__ = ["aligned", "axis_of", "canonical", "dtype_of", "namespace", "numeric", "pointwise"]


def namespace(*arrays: Any) -> Any:
    """numpy where every array given (None is absent) is numpy, else jax.numpy."""
    static = all(a is None or isinstance(a, np.ndarray | np.generic) for a in arrays)
    return np if static else jnp


def aligned(xp: Any, *arrays: Any) -> tuple[Any, ...]:
    """The arrays with leading axes of length 1, so that all have one rank; None stays None."""
    rank = max((np.ndim(a) for a in arrays if a is not None), default=0)
    return tuple(
        a if a is None or np.ndim(a) == rank else xp.reshape(a, (1,) * (rank - a.ndim) + a.shape)
        for a in arrays
    )


def axis_of(node: Node, axis: int, rank: int) -> int:
    """`axis` counted from the front, or ModelError where it is outside [-rank, rank)."""
    if not -rank <= axis < max(rank, 1):
        raise ModelError(
            f"{node.op} node {node.name!r}: axis {axis} is outside [{-rank}, {rank}) of a "
            f"tensor of rank {rank}"
        )
    return axis % max(rank, 1)


def canonical(xp: Any, dtype: Any) -> np.dtype:
    """`dtype` in numpy; jax narrows 64 bits to 32 unless its x64 context is on."""
    return np.dtype(dtype) if xp is np else np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def dtype_of(xp: Any, element_type: int) -> np.dtype:
    """The dtype of an ONNX element type, as `canonical` gives it."""
    return canonical(xp, helper.tensor_dtype_to_np_dtype(element_type))


def numeric(dtype: Any) -> str:
    """The kind of a dtype: "b" bool, "i" and "u" integers, "f" floats, "c" complex; else "V"."""
    dtype = np.dtype(dtype)
    if dtype.kind in "biufc":
        return dtype.kind
    if dtype in (ml_dtypes.int2, ml_dtypes.int4):
        return "i"
    if dtype in (ml_dtypes.uint2, ml_dtypes.uint4):
        return "u"
    return "f" if jnp.issubdtype(dtype, jnp.floating) else "V"


def pointwise(op: str, *, since: int = 1, domain: str = ""):
    """Registers `function(xp, node, *arrays)` as elementwise: arrays come with one rank."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def lowered(node, *arrays):
            xp = namespace(*arrays)
            arrays = aligned(xp, *arrays)
            if xp is jnp:
                return function(jnp, node, *arrays)
            return np.asarray(function(np, node, *arrays))

        lowering(op, since=since, domain=domain, layout="elementwise")(lowered)
        return function

    return register
