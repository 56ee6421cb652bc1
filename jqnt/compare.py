"""Float, simulation and integers side by side, tensor by tensor: where do they part?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from jqnt import integer
from jqnt.encodings import Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.quality import Quality, Run, tensor_quality
from jqnt.steps import Steps, steps_between
from jqnt.thaw import thaw
from jqnt.types import Params

__all__ = ["Emulation", "Row", "clipped_share", "compare", "first_to_part", "layer_outputs"]


@dataclass(frozen=True)
class Row:
    """One tensor: the node that makes it, its format, and how near two pairs of networks are.

    `simulation` compares the quantized network in float with the float network, `integers` the
    integer emulation with the simulation; None where the tensor does not exist on integers.
    `steps` counts by how many codes emulation and simulation differ, `device` compares what a
    device gave with the emulation (with the simulation where there are no integers), `device_steps`
    in codes.
    """

    tensor: str
    node: str
    op: str
    format: str
    simulation: Quality
    integers: Quality | None
    steps: Steps | None = None
    device: Quality | None = None
    device_steps: Steps | None = None


@dataclass(frozen=True)
class Emulation:
    """Which integers: the name of an arithmetic, and what is done with nodes that match none of
    its kernels ("error" or "float")."""

    arithmetic: str = "onnxruntime"
    unmatched: Literal["error", "float"] = "error"


def compare(
    graph: Graph,
    reference: Params,
    params: Params,
    encodings: Encodings,
    batches: Iterable[Mapping[str, Any]],
    *,
    tensors: Sequence[str] | None = None,
    emulation: Emulation | None = None,
    device: Mapping[str, Any] | None = None,
    steps: bool = False,
) -> tuple[Row, ...]:
    """A row for each of `tensors`, by default what carries an encoding and the outputs.

    `reference` are the float params of the same graph, `params` and `encodings` the frozen ones.
    Integers are those of `emulation`; without it those of onnxruntime, if all groups have a
    kernel (see `integer.lower`). `device` holds what a device computed for all the samples in
    order, tensor name -> array. With `steps`, differences are counted in codes too.

    Raises ConfigError for an unknown tensor, DataError for data that do not fit or are none, and
    what `integer.lower` raises for an `emulation` that is asked for.
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
    held, emulated = _emulation(graph, params, encodings, names, emulation)
    whole = tensor_quality(simulation, emulated, held, kept) if held else {}
    counted = _steps(simulation, emulated, held, kept, encodings) if held and steps else {}
    theirs: dict[str, tuple[Quality, Steps | None]] = {}
    if device is not None:
        theirs = _device(simulation, emulated, held, kept, device, encodings)
    rows = []
    for name in names:
        quality, codes = theirs.get(name, (None, None))
        row = _row(graph, name, encodings, near[name], whole.get(name))
        rows.append(replace(row, steps=counted.get(name), device=quality, device_steps=codes))
    return tuple(rows)


def first_to_part(rows: Sequence[Row], share: float = 0.0) -> str | None:
    """The first tensor, in the graph's order, of which more than `share` differs between
    simulation and integers; None where none does."""
    return next((r.tensor for r in rows if r.steps is not None and r.steps.one > share), None)


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
    graph: Graph,
    params: Params,
    encodings: Encodings,
    names: Sequence[str],
    wanted: Emulation | None,
) -> tuple[tuple[str, ...], Any]:
    """The names that exist on integers, and what computes them; none where no kernels match,
    unless that emulation was asked for."""
    held = tuple(
        name
        for name in names
        if name in encodings.tensors and isinstance(encodings[name].format, Integer)
    )
    if not held:
        return (), None
    chosen = wanted or Emulation()
    try:
        run = integer.lower(graph, params, encodings, chosen.arithmetic, chosen.unmatched)
    except UnsupportedError:
        if wanted is not None:
            raise
        return (), None
    return held, lambda inputs: run(inputs, want=held)


def _steps(
    simulation: Run,
    emulated: Run,
    names: Sequence[str],
    batches: Iterable[Mapping[str, Any]],
    encodings: Encodings,
) -> dict[str, Steps]:
    total: dict[str, Steps] = {}
    for batch in batches:
        soft, hard = simulation(dict(batch)), emulated(dict(batch))
        for name in names:
            found = steps_between(np.asarray(soft[name]), np.asarray(hard[name]), encodings[name])
            total[name] = total[name].merged(found) if name in total else found
    return total


def _device(
    simulation: Run,
    emulated: Run | None,
    held: Sequence[str],
    batches: Iterable[Mapping[str, Any]],
    device: Mapping[str, Any],
    encodings: Encodings,
) -> dict[str, tuple[Quality, Steps | None]]:
    """What the device's tensors are to the emulation's, or to the simulation's."""
    inputs = list(batches)
    runs = {n: emulated if n in held and emulated is not None else simulation for n in device}
    found: dict[str, tuple[Quality, Steps | None]] = {}
    for name, run in runs.items():
        ours = [np.asarray(_one(run, simulation, dict(batch), name)) for batch in inputs]
        value = np.concatenate(ours)
        theirs = np.asarray(device[name], np.float32)
        if theirs.size % max(value[0].size, 1):
            raise DataError(
                f"the device's tensor {name!r} has {theirs.size} values, which is no multiple of "
                f"{value[0].size}, the values of one sample"
            )
        theirs = theirs.reshape(-1, *value.shape[1:])[: len(value)]
        value = value[: len(theirs)]
        quality = tensor_quality(
            lambda _, v=value, n=name: {n: v}, lambda _, v=theirs, n=name: {n: v}, [name], [{}]
        )[name]
        integers = name in encodings and isinstance(encodings[name].format, Integer)
        codes = steps_between(value, theirs, encodings[name]) if integers else None
        found[name] = quality, codes
    return found


def _one(run: Any, simulation: Run, inputs: dict[str, Any], name: str) -> Any:
    values = run(inputs)
    return values[name] if name in values else simulation(inputs)[name]


def _row(
    graph: Graph, name: str, encodings: Encodings, near: Quality, whole: Quality | None
) -> Row:
    node = graph.producer.get(name)
    fmt = encodings[name].format.name if name in encodings else "float32"
    return Row(name, node.name if node else "", node.op if node else "input", fmt, near, whole)
