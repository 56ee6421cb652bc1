"""Float, simulation and integers side by side, tensor by tensor: where do they part?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jqnt import integer
from jqnt.encodings import Encodings
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.quality import Quality, tensor_quality
from jqnt.thaw import thaw
from jqnt.types import Params

__all__ = ["Row", "clipped_share", "compare", "layer_outputs"]


@dataclass(frozen=True)
class Row:
    """One tensor: the node that makes it, its format, and how near two pairs of networks are.

    `simulation` compares the quantized network in float with the float network, `integers` the
    integer emulation with the simulation; None where the tensor does not exist on integers.
    """

    tensor: str
    node: str
    op: str
    format: str
    simulation: Quality
    integers: Quality | None


def compare(
    graph: Graph,
    reference: Params,
    params: Params,
    encodings: Encodings,
    batches: Iterable[Mapping[str, Any]],
    *,
    tensors: Sequence[str] | None = None,
) -> tuple[Row, ...]:
    """A row for each of `tensors`, by default what carries an encoding and the outputs.

    `reference` are the float params of the same graph, `params` and `encodings` the frozen ones.
    Integers are compared where all groups have a kernel (see `integer.lower`). Raises ConfigError
    for an unknown tensor and DataError for data that do not fit or are none.
    """
    encoded = [t for node in graph.nodes for t in node.outputs if t in encodings]
    names = tuple(dict.fromkeys(tensors or (*encoded, *graph.outputs)))
    for name in names:
        graph.check(name)
    kept = [{name: batch[name] for name in graph.inputs} for batch in batches]
    apply = jax.jit(lower(graph), static_argnames="want")
    qparams = thaw(encodings)

    def exact(inputs: dict[str, Any]) -> Mapping[str, Any]:
        return apply(reference, {}, inputs, want=names)

    def simulation(inputs: dict[str, Any]) -> Mapping[str, Any]:
        return apply(params, qparams, inputs, want=names)

    near = tensor_quality(exact, simulation, names, kept)
    held, emulation = _emulation(graph, params, encodings, names)
    whole = tensor_quality(simulation, emulation, held, kept) if held else {}
    return tuple(_row(graph, name, encodings, near[name], whole.get(name)) for name in names)


def layer_outputs(graph: Graph, outputs: Iterable[str]) -> tuple[str, ...]:
    """Those of `outputs` that the graph makes, in its order."""
    wanted = set(outputs)
    return tuple(t for node in graph.nodes for t in node.outputs if t in wanted)


def clipped_share(
    graph: Graph, encodings: Encodings, batches: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Graph input -> share of its values outside the encoded range: data unlike the calibration
    data, if it is more than a trifle."""
    outside: dict[str, int] = {}
    total: dict[str, int] = {}
    for batch in batches:
        for name in graph.inputs:
            encoding = encodings.tensors.get(name)
            if encoding is None or not isinstance(encoding.format, Integer):
                continue
            low, high = (encoding.dequantize(np.full((), q)) for q in encoding.format.limits)
            half = np.asarray(encoding.scale) / 2
            x = np.asarray(batch[name])
            out = int(((x < low - half) | (x > high + half)).sum())
            outside[name] = outside.get(name, 0) + out
            total[name] = total.get(name, 0) + x.size
    return {name: outside[name] / total[name] for name in outside}


def _emulation(
    graph: Graph, params: Params, encodings: Encodings, names: Sequence[str]
) -> tuple[tuple[str, ...], Any]:
    """The names that exist on integers, and what computes them; none where no kernels match."""
    held = tuple(
        name
        for name in names
        if name in encodings.tensors and isinstance(encodings[name].format, Integer)
    )
    if not held:
        return (), None
    try:
        run = integer.lower(graph, params, encodings)
    except UnsupportedError:
        return (), None
    return held, lambda inputs: run(inputs, want=held)


def _row(
    graph: Graph, name: str, encodings: Encodings, near: Quality, whole: Quality | None
) -> Row:
    node = graph.producer.get(name)
    fmt = encodings[name].format.name if name in encodings else "float32"
    return Row(name, node.name if node else "", node.op if node else "input", fmt, near, whole)
