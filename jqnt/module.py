"""The Flax face: an ONNX model as an nnx.Module whose parameters carry the ONNX names."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from flax import nnx

from jqnt.errors import DataError
from jqnt.graph.ir import Graph
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.precision import is_wide
from jqnt.graph.session import session
from jqnt.ranges import RANGE_FIELDS
from jqnt.thaw import thaw

__all__ = ["Model", "QuantConst", "QuantParam", "load", "qparams"]


class QuantParam(nnx.Variable):
    """A leaf of a quantizer that trains: a scale or limit, a rounding logit, a probability."""


class QuantConst(nnx.Variable):
    """A leaf of a quantizer that does not: a zero point, a width."""


class Model(nnx.Module):
    """A graph with its weights and quantizers: `model(*inputs)` in the graph's order.

    `params[name]` is the nnx.Param of a weight; `quantizers[tensor][field]` the QuantParam or
    QuantConst of a quantizer's leaf, the former where the field's name is in `trainable`. One
    output comes back bare, several as a tuple. The module is a pytree: jax.jit, grad and vmap
    take it, nnx.split, state, merge and update as well.
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Any],
        quantizers: Mapping[str, Any] | None = None,
        trainable: Collection[str] = (*RANGE_FIELDS, "logit", "probability"),
    ):
        self.graph = graph
        self.params = nnx.Dict({name: nnx.Param(_held(params[name])) for name in graph.params})
        held, structures = {}, []
        for tensor, quantizer in (quantizers or {}).items():
            found, structure = jax.tree_util.tree_flatten_with_path(quantizer)
            leaves = {}
            for path, leaf in found:
                field = ".".join(str(getattr(k, "name", getattr(k, "idx", k))) for k in path)
                kind = QuantParam if field.rpartition(".")[2] in trainable else QuantConst
                leaves[field] = kind(jnp.asarray(leaf))
            held[graph.check(tensor)] = nnx.Dict(leaves)
            structures.append((tensor, structure, tuple(leaves)))
        self.quantizers = nnx.Dict(held)
        self._structures = tuple(structures)
        self._run = session(graph, params)

    def __call__(self, *inputs: Any) -> Any:
        if len(inputs) != len(self.graph.inputs):
            raise DataError(
                f"{len(inputs)} inputs for graph {self.graph.name!r}, which takes "
                f"{len(self.graph.inputs)}: {', '.join(self.graph.inputs)}"
            )
        params = {name: self.params[name].get_value() for name in self.graph.params}
        named = dict(zip(self.graph.inputs, inputs, strict=True))
        outputs = self._run(params, qparams(self), named)
        results = tuple(outputs[name] for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results


def qparams(model: Model) -> dict[str, Any]:
    """Tensor name -> quantizer, from the current values of the model's variables."""
    return {
        tensor: structure.unflatten(model.quantizers[tensor][field].get_value() for field in fields)
        for tensor, structure, fields in model._structures
    }


def load(model: str | Path | bytes | onnx.ModelProto) -> Model:
    """The Flax model of an ONNX file, its bytes or its proto; errors as of `import_onnx`.

    A quantized model comes with a quantizer for each of its encodings.
    """
    graph, params, encodings = import_onnx(model)
    return Model(graph, params, thaw(encodings))


def _held(value: Any) -> Any:
    """A jax array; numpy where jax would narrow the type."""
    return np.asarray(value) if is_wide(value.dtype) else jnp.asarray(value)
