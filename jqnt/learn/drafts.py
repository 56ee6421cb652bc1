"""Quantized networks on their way: made from data, learned, judged, priced."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt import integer, npu
from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import Integer
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.graph.session import session
from jqnt.learn.adaround import adaround
from jqnt.learn.calibrate import calibrate
from jqnt.learn.qat import qat
from jqnt.learn.quality import tensor_quality
from jqnt.learn.staircase import Progress, Step
from jqnt.npu.layers import layer_costs
from jqnt.observers import MINMAX, Observer, sqnr
from jqnt.plan import Plan, Theta, bind
from jqnt.quantizers import SoftRound
from jqnt.rules import Rule
from jqnt.thaw import thaw
from jqnt.types import Apply, Params

__all__ = [
    "SQNR", "Bench", "Clock", "Draft", "Network", "frozen_of", "judged", "kept_if",
    "output_error", "with_ranges", "with_rounding", "with_training",
]  # fmt: skip

Run = Callable[[dict[str, Any]], Mapping[str, Any]]

SQNR = sqnr()
"""How activations are observed by default: by their signal to noise."""

_BATCH_MACS, _TRAIN_MACS = 6e9, 4e11
"""Multiply-accumulates of a training batch, and of all of them, that two cores can afford."""


@dataclass(frozen=True, eq=False)
class Network:
    """A graph with its float params, and what is made from them once."""

    graph: Graph
    params: Params

    @functools.cached_property
    def apply(self) -> Apply:
        """One compiled program for all encodings of the same kinds."""
        return session(self.graph, self.params)

    @functools.cached_property
    def workload(self) -> npu.Workload:
        """What a device has to do for one sample."""
        return npu.workload(self.graph, self.params)

    def samples_for(self, macs: float, least: int, most: int) -> int:
        """How many samples `macs` multiply-accumulates are enough for, within limits."""
        own = max(float(np.sum(self.workload.dims.macs)), 1.0)
        return int(min(max(macs / own, least), most))

    def run(self, inputs: dict[str, Any], want: Sequence[str] = ()) -> Mapping[str, Any]:
        """The float network."""
        return self.apply(self.params, {}, inputs, want=tuple(want) or self.graph.outputs)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every step needs beside a network: the data, the judge, the device."""

    calibration: list[dict[str, Any]]
    evaluate: Callable[[Run], float]
    device: npu.Device
    target: str
    rules: tuple[Rule, ...]
    progress: Progress
    key: PRNGKeyArray


@dataclass(frozen=True, eq=False)
class Draft:
    """A quantized network before it is judged."""

    network: Network
    plan: Plan
    theta: Theta
    params: Params


class Clock:
    """The name of the step at work, when it began, and whom to tell."""

    def __init__(self, progress: Progress, count: int):
        self.progress, self.count = progress, count
        self.name, self.since, self.done = "", time.perf_counter(), 0

    def start(self, name: str) -> None:
        """Begins a step."""
        self.progress(name, min(self.done, self.count), self.count)
        self.name, self.since, self.done = name, time.perf_counter(), self.done + 1

    def told(self, what: str, done: int, total: int) -> None:
        """Progress within the step, with what is being done."""
        self.progress(f"{self.name}: {what}", done, total)

    def inner(self, what: str) -> Callable[[int, int, Any], None]:
        """Progress within the step, for the loops below."""
        return lambda done, total, _=None: self.progress(f"{self.name}: {what}", done, total)


def with_ranges(
    bench: Bench,
    network: Network,
    chosen: Plan,
    *,
    observer: Observer = SQNR,
    weight_observer: Observer = MINMAX,
    batches: int | None = None,
) -> Draft:
    """Ranges from the calibration data, or from its first `batches`."""
    theta = calibrate(
        network.apply, network.params, chosen, bench.calibration[:batches], observer=observer,
        weight_observer=weight_observer,
    )  # fmt: skip
    return Draft(network, chosen, theta, network.params)


def with_rounding(bench: Bench, clock: Clock, draft: Draft, key: PRNGKeyArray) -> Draft:
    """Every weight on an integer grid by AdaRound."""
    theta = adaround(
        draft.network.graph, draft.params, draft.theta, draft.plan, bench.calibration,
        progress=clock.inner("layers"), key=key,
    )  # fmt: skip
    return replace(draft, theta=theta)


def with_training(bench: Bench, clock: Clock, draft: Draft, key: PRNGKeyArray) -> Draft:
    """Weights and scales trained from where rounding ended, taught by the float network."""
    network = draft.network
    params, _ = frozen_of(draft)
    theta = {
        name: group.affine if isinstance(group, SoftRound) else group
        for name, group in draft.theta.items()
    }
    count = sum(_length(network.graph, batch) for batch in bench.calibration)
    batch_size = min(network.samples_for(_BATCH_MACS, 8, 50), count)
    steps = network.samples_for(_TRAIN_MACS, 100 * batch_size, 400 * batch_size) // batch_size
    params, theta = qat(
        network.graph, params, theta, draft.plan, bench.calibration, network.params,
        steps=steps, batch_size=batch_size, progress=clock.inner("training"), key=key,
    )  # fmt: skip
    return replace(draft, params=params, theta=theta)


def frozen_of(draft: Draft) -> tuple[Params, Encodings]:
    """What is deployed: params on their grids, and the encodings."""
    return freeze(draft.network.graph, draft.params, bind(draft.theta, draft.plan))


def output_error(bench: Bench, network: Network, frozen: tuple[Params, Encodings]) -> float:
    """Noise over signal at the outputs on the calibration data, the worst of them, in dB."""
    params, qparams = frozen[0], thaw(frozen[1])

    def run(inputs: dict[str, Any]) -> Mapping[str, Any]:
        return network.apply(params, qparams, inputs)

    outputs = network.graph.outputs
    quality = tensor_quality(network.run, run, outputs, bench.calibration)
    return max(-quality[name].sqnr_db for name in outputs)


def judged(
    bench: Bench,
    clock: Clock,
    network: Network,
    params: Params,
    encodings: Encodings,
    detail: str = "",
) -> Step:
    """Both metrics, the price on the device, and the time since the step began."""
    qparams = thaw(encodings)
    simulated = bench.evaluate(lambda inputs: network.apply(params, qparams, inputs))
    emulated = None
    if any(isinstance(e.format, Integer) for e in encodings.values()):
        try:
            emulated = bench.evaluate(integer.lower(network.graph, params, encodings))
        except UnsupportedError as error:
            detail = "; ".join(filter(None, (detail, f"no integer emulation: {error}")))
    choice: Encodings | str = encodings if len(encodings) else "float32"
    latency_s, layers = None, ()
    try:
        latency_s = float(npu.latency(network.workload, choice, bench.device))
        layers = layer_costs(network.workload, choice, bench.device)
    except ConfigError as error:
        detail = "; ".join(filter(None, (detail, f"no latency: {error}")))
    return Step(
        name=clock.name,
        metric_float_sim=simulated,
        metric_integer=emulated,
        latency_s=latency_s,
        size_bytes=_size_bytes(params, encodings),
        seconds=time.perf_counter() - clock.since,
        graph=network.graph,
        reference=network.params,
        params=params,
        encodings=encodings,
        layers=layers,
        detail=detail,
    )


def kept_if(nearer: bool) -> str:
    """What a step says of itself that is kept by later ones only where it helps."""
    return "kept" if nearer else "not kept: no nearer to the float outputs on calibration data"


def _size_bytes(params: Params, encodings: Encodings) -> float:
    """Parameters in their formats, with their scales and zero points; float32 where none."""
    total = 0.0
    for name, value in params.items():
        encoding = encodings.tensors.get(name)
        bits = 32 if encoding is None else encoding.format.bits
        total += np.size(value) * bits / 8
        if encoding is not None and encoding.scale is not None and bits < 32:
            total += np.size(encoding.scale) * 8  # a bias's scale follows from two others
    return total


def _length(graph: Graph, batch: Mapping[str, Any]) -> int:
    return len(batch[graph.inputs[0]])
