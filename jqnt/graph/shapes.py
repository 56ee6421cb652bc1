"""The shape and type of every tensor, by abstract evaluation of the lowered graph."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower

__all__ = ["infer_shapes"]


def infer_shapes(
    graph: Graph,
    params: Mapping[str, Any],
    batch: int = 1,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Tensor name -> shape and dtype for every tensor; nothing is computed.

    `inputs` gives arrays or `jax.ShapeDtypeStruct`s by input name, and arrays where a value
    decides a shape. An input that is not there takes its declared shape, with `batch` for every
    symbolic or unknown size.
    Raises ModelError for an input whose rank is not declared.
    """
    given: dict[str, Any] = {}
    concrete: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        value = None if inputs is None else inputs.get(name)
        if isinstance(value, np.ndarray):
            concrete[name] = value
        elif value is not None:
            given[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        else:
            info = graph.info.get(name)
            if info is None or info.shape is None:
                raise ModelError(f"input {name!r} declares no shape; give one in `inputs`")
            shape = tuple(d if isinstance(d, int) else batch for d in info.shape)
            given[name] = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(info.dtype))
    structs = {
        name: jax.ShapeDtypeStruct(
            np.shape(value), jax.dtypes.canonicalize_dtype(jnp.result_type(value))
        )
        for name, value in params.items()
    }
    apply = lower(graph)
    static: dict[str, jax.ShapeDtypeStruct] = {}

    def every(params: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        values = apply(params, {}, {**given, **concrete}, want=graph.tensors)
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                static[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return {name: value for name, value in values.items() if name not in static}

    found = jax.eval_shape(every, structs, given)
    return {name: static[name] if name in static else found[name] for name in graph.tensors}
