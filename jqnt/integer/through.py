"""Training through the integers: forward what the backend computes, backward straight through."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encodings
from jqnt.errors import UnsupportedError
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.integer.lower import execute, program_of, tables_of
from jqnt.integer.narrow import Accumulator
from jqnt.quantizers import Affine, Mixture, SoftRound
from jqnt.types import Params, QParams

__all__ = ["through"]


def through(
    graph: Graph,
    params: Params,
    qparams: QParams,
    arithmetic: str = "onnxruntime",
    unmatched: str = "error",
    accumulator: Accumulator | None = None,
):
    """`apply(params, qparams, inputs, want=graph.outputs)`, as `lower` gives it, on integers.

    Each wanted tensor has exactly the emulation's value (that of `integer.lower` on the frozen
    params and encodings), and the derivative of the fake-quant simulation:

        value = hard,   d value = d soft.

    So whatever trains a simulation (QAT, range learning, AdaRound) optimizes what the hardware
    computes. Weight codes and requantization tables are made anew on the host at each call, in
    numpy as `integer.lower` makes them. `params` and `qparams` say what is static: formats,
    granularities, which tensors share a grid.

    Raises UnsupportedError for mixtures (decide them first), and where a grid that was another's
    is no longer, or the other way round.
    """
    if mixed := sorted(n for n, q in qparams.items() if isinstance(q, Mixture)):
        raise UnsupportedError(f"{mixed[0]!r} is a mixture of formats; decide it before training")
    for name, q in qparams.items():
        if isinstance(q, Affine) and (q.shifted or q.rounding != "half_even"):
            raise UnsupportedError(
                f"{name!r}: integers are rounded to nearest even on a grid with 0"
            )
    simulate = lower(graph)
    frozen, encodings = freeze(graph, params, qparams)
    options = (arithmetic, unmatched, accumulator)
    program = program_of(graph, frozen, encodings, *options)
    model = _canonical(tables_of(program))
    structure = jax.tree.structure(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)

    def host(values: dict[str, Any], numbers: dict[str, Any]) -> Any:
        tensors = {
            name: replace(
                encoding,
                scale=np.asarray(numbers[name][0], np.float32),
                zero_point=np.rint(numbers[name][1]).astype(np.int64),
            )
            if name in numbers
            else encoding
            for name, encoding in encodings.items()
        }
        values = {name: np.asarray(value) for name, value in values.items()}
        now = program_of(graph, values, Encodings(tensors), *options)
        tables = _canonical(tables_of(now))
        if jax.tree.structure(tables) != structure:
            raise UnsupportedError(
                "training moved grids together or apart, or weights past 8 bits, so that other "
                "integer kernels are needed; build `through` anew"
            )
        return tables

    def apply(
        params: Params,
        qparams: QParams,
        inputs: Mapping[str, Any],
        want: Sequence[str] = graph.outputs,
    ) -> dict[str, Any]:
        soft = simulate(params, qparams, inputs, want=tuple(want))
        held = jax.lax.stop_gradient((params, qparams, dict(inputs)))
        values, numbers = _frozen(*held[:2])
        tables = jax.pure_callback(host, shapes, values, numbers)
        fixed = {name: jnp.asarray(value) for name, value in held[2].items()}
        hard = execute(program, tables, fixed, want=tuple(want), integers=False)
        return {name: _exactly(soft[name], hard[name]) for name in want}

    return apply


def _frozen(params: Params, qparams: QParams) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params with learned rounding applied, tensor -> (scale, zero point)), inside a trace."""
    values, numbers = dict(params), {}
    for name, quantizer in qparams.items():
        if isinstance(quantizer, SoftRound):
            values[name] = quantizer.harden(jnp.asarray(params[name]))
            quantizer = quantizer.affine
        if isinstance(quantizer, Affine):
            quantizer = quantizer.on_grid()
            scale = jnp.asarray(quantizer.scale, jnp.float32)
            numbers[name] = scale, jnp.broadcast_to(jnp.asarray(quantizer.zero_point), scale.shape)
    return values, numbers


def _canonical(tables: Any) -> Any:
    """Arrays of 32 bits at the most, as they are inside a trace."""

    def narrow(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree.map(narrow, tables)


@jax.custom_jvp
def _exactly(soft: Any, hard: Any) -> Any:
    return hard


_exactly.defjvp(lambda primals, tangents: (primals[1], tangents[0]))
