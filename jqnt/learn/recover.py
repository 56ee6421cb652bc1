"""The main job: from FP32 to a plan that deploys, ending at the first step that is good enough."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt import integer, npu
from jqnt.choices import with_choices
from jqnt.encodings import Encodings
from jqnt.errors import BudgetError, ConfigError, UnsupportedError
from jqnt.formats import FP16, Integer
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.graph.session import session
from jqnt.learn.adaround import adaround
from jqnt.learn.calibrate import calibrate, checked_batches
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.qat import divergence_of, qat
from jqnt.learn.quality import tensor_quality
from jqnt.learn.search import search
from jqnt.learn.space import space
from jqnt.learn.staircase import Progress, Recovery, Step
from jqnt.npu.layers import layer_costs
from jqnt.observers import MINMAX, Observer, exact_mse, sqnr
from jqnt.placement import plan
from jqnt.plan import Plan, Theta, bind
from jqnt.quantizers import Cast, SoftRound
from jqnt.rules import Rule
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Apply, Params

__all__ = ["recover"]

Run = Callable[[dict[str, Any]], Mapping[str, Any]]
Batches = Sequence[Mapping[str, np.ndarray]]

_COUNT = 7
"""Steps of the staircase, for progress."""

_SEARCH_MACS, _BATCH_MACS, _TRAIN_MACS = 5e9, 6e9, 4e11
"""Multiply-accumulates of one forward pass over the samples of the search, of a training batch,
of all training batches: how many samples a network of any size can afford on two cores."""


def recover(
    graph: Graph,
    params: Params,
    calibration: Batches,
    evaluate: Callable[[Run], float],
    device: npu.Device,
    *,
    max_drop: float,
    max_latency_s: float | None = None,
    run_all: bool = False,
    target: str = "onnxruntime",
    rules: Sequence[Rule] = (),
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Recovery:
    """The staircase FP32, FP16, W8A8, equalization, AdaRound, mixed precision, QAT.

    Each step builds on the one before; it stops at the first whose metric is at most `max_drop`
    below the float model's and whose latency on `device` is at most `max_latency_s` (unless
    `run_all`). `evaluate(run)` gives the metric of a network, more is better; it is asked for
    the float simulation and for the integer emulation of every step. `calibration` is all that
    is learned from. Mixed precision is searched within the budget, or, without one, within the
    latency of W8A8; `rules`, such as a plan found before, take the search's place. Equalization
    and AdaRound are kept by later steps only where they bring the outputs on the calibration data
    nearer to the float network's; each step reports itself.

    Raises BudgetError, with the minimum, for a budget that no legal plan meets, and DataError
    for data that are absent, empty, not finite or do not fit.
    """
    if max_latency_s is not None and not max_latency_s > 0:
        raise ConfigError(f"a latency budget is positive, not {max_latency_s} s")
    if not max_drop >= 0:
        raise ConfigError(f"the drop allowed is at least 0 points, not {max_drop}")
    kept = [dict(batch) for batch in checked_batches(calibration)]
    bench = _Bench(kept, evaluate, device, target, tuple(rules), progress or _silent, key)
    original = _Network(graph, params)
    folded = _Network(*fold_bn(*cleanup(graph, params)))
    if max_latency_s is not None:
        _check_budget(folded, device, max_latency_s)
    found = Recovery((), max_drop, np.inf if max_latency_s is None else max_latency_s)
    for step in _staircase(bench, original, folded, max_latency_s):
        found = replace(found, steps=(*found.steps, step))
        if found.meets(step) and not run_all:
            break
    return found


@dataclass(frozen=True, eq=False)
class _Network:
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
class _Bench:
    """What every step needs beside a network: the data, the judge, the device."""

    calibration: list[dict[str, Any]]
    evaluate: Callable[[Run], float]
    device: npu.Device
    target: str
    rules: tuple[Rule, ...]
    progress: Progress
    key: PRNGKeyArray


@dataclass(frozen=True, eq=False)
class _Draft:
    """A quantized network before it is judged."""

    network: _Network
    plan: Plan
    theta: Theta
    params: Params


def _staircase(
    bench: _Bench, original: _Network, folded: _Network, max_latency_s: float | None
) -> Iterator[Step]:
    """The steps in order, each computed when it is asked for."""
    keys = jax.random.split(bench.key, 3)
    clock = _Clock(bench.progress)
    clock.start("FP32")
    yield _step(bench, clock, original, original.params, Encodings())
    clock.start("FP16")
    yield _step(bench, clock, folded, *_half(folded, bench.target))
    clock.start("W8A8")
    best = _calibrated(bench, folded, plan(folded.graph, target=bench.target))
    frozen = _frozen(best)
    w8a8 = _step(bench, clock, folded, *frozen)
    yield w8a8
    clock.start("+ equalization")
    network = _Network(*equalize(folded.graph, folded.params))
    even = _calibrated(bench, network, plan(network.graph, target=bench.target))
    evened = _frozen(even)
    nearer = _error(bench, network, evened) < _error(bench, folded, frozen)
    yield _step(bench, clock, network, *evened, _kept(nearer))
    if nearer:
        best, frozen = even, evened
    clock.start("+ AdaRound")
    rounded = _frozen(_rounded(bench, clock, best, keys[0]))
    nearer = _error(bench, best.network, rounded) < _error(bench, best.network, frozen)
    yield _step(bench, clock, best.network, *rounded, _kept(nearer))
    clock.start("mixed precision")
    slowest = float(npu.latency_range(npu.tables(best.network.workload, bench.device))[1])
    limits = (max_latency_s, w8a8.latency_s, slowest)
    budget = next(limit for limit in limits if limit is not None)
    mixed, detail = _mixed(bench, clock, best, budget, keys[1])
    yield _step(bench, clock, mixed.network, *_frozen(mixed), detail)
    clock.start("+ QAT")
    trained = _trained(bench, clock, mixed, keys[2])
    yield _step(bench, clock, trained.network, *_frozen(trained))


class _Clock:
    """The name of the step at work, when it began, and whom to tell."""

    def __init__(self, progress: Progress):
        self.progress, self.name, self.since, self.done = progress, "", time.perf_counter(), 0

    def start(self, name: str) -> None:
        """Begins a step."""
        self.progress(name, self.done, _COUNT)
        self.name, self.since, self.done = name, time.perf_counter(), self.done + 1

    def told(self, what: str, done: int, total: int) -> None:
        """Progress within the step, with what is being done."""
        self.progress(f"{self.name}: {what}", done, total)

    def inner(self, what: str) -> Callable[[int, int, Any], None]:
        """Progress within the step, for the loops below."""
        return lambda done, total, _=None: self.progress(f"{self.name}: {what}", done, total)


def _calibrated(
    bench: _Bench, network: _Network, chosen: Plan, weight_observer: Observer = MINMAX
) -> _Draft:
    """Ranges from the calibration data: activations by their signal to noise."""
    theta = calibrate(
        network.apply, network.params, chosen, bench.calibration, observer=sqnr(),
        weight_observer=weight_observer,
    )  # fmt: skip
    return _Draft(network, chosen, theta, network.params)


def _rounded(bench: _Bench, clock: _Clock, draft: _Draft, key: PRNGKeyArray) -> _Draft:
    theta = adaround(
        draft.network.graph, draft.params, draft.theta, draft.plan, bench.calibration,
        progress=clock.inner("layers"), key=key,
    )  # fmt: skip
    return replace(draft, theta=theta)


def _mixed(
    bench: _Bench, clock: _Clock, draft: _Draft, budget_s: float, key: PRNGKeyArray
) -> tuple[_Draft, str]:
    """Formats searched within the latency budget, then the rounding learned under that plan."""
    network, keys = draft.network, jax.random.split(key)
    if bench.rules:
        given = plan(network.graph, bench.rules, target=bench.target)
        ranges = _calibrated(bench, network, given, exact_mse())
        decided = replace(draft, plan=given, theta=ranges.theta)
        return _rounded(bench, clock, decided, keys[1]), "formats as the rules say"
    menu = [pair for pair in menu_of(bench.device) if "float32" not in pair]
    choices = with_choices(draft.plan, network.graph, menu, target=bench.target)
    # Few levels need clipped weight ranges; eight bits do well with all of the range.
    ranges = _calibrated(bench, network, choices, exact_mse())
    data = _some(bench.calibration, network.samples_for(_SEARCH_MACS, 32, 256))
    outputs = network.run(_inputs(network.graph, data[0]))
    problem = space(
        network.graph, network.params, choices, ranges.theta,
        prices(choices, network.workload, bench.device), data,
        divergence=divergence_of(outputs),
    )  # fmt: skip
    found = search(problem, [budget_s], steps=100, progress=clock.told, key=keys[0])
    decided = replace(draft, plan=found.plan, theta=found.theta)
    proof = found.certificate
    share = proof.gap / max(proof.loss, np.finfo(float).tiny)
    detail = f"searched within {1e3 * budget_s:.4g} ms; {100 * share:.2g} % above the dual bound"
    return _rounded(bench, clock, decided, keys[1]), detail


def _trained(bench: _Bench, clock: _Clock, draft: _Draft, key: PRNGKeyArray) -> _Draft:
    """Weights and scales trained from where rounding ended, taught by the float network."""
    network = draft.network
    params, _ = _frozen(draft)
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


def _half(network: _Network, target: str) -> tuple[Params, Encodings]:
    """FP16 wherever the target's plan has a quantizer, weights and biases included."""
    base = plan(network.graph, target=target)
    names = (*base.specs, *base.tied, *base.biases)
    return freeze(network.graph, network.params, {name: Cast(FP16) for name in names})


def _frozen(draft: _Draft) -> tuple[Params, Encodings]:
    return freeze(draft.network.graph, draft.params, bind(draft.theta, draft.plan))


def _error(bench: _Bench, network: _Network, frozen: tuple[Params, Encodings]) -> float:
    """Noise over signal at the outputs on the calibration data, the worst of them, in dB."""
    params, qparams = frozen[0], thaw(frozen[1])

    def run(inputs: dict[str, Any]) -> Mapping[str, Any]:
        return network.apply(params, qparams, inputs)

    outputs = network.graph.outputs
    quality = tensor_quality(network.run, run, outputs, bench.calibration)
    return max(-quality[name].sqnr_db for name in outputs)


def _step(
    bench: _Bench,
    clock: _Clock,
    network: _Network,
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


def _check_budget(network: _Network, device: npu.Device, max_latency_s: float) -> None:
    """Raises BudgetError before any work is spent on a hopeless budget."""
    least, _ = (float(x) for x in npu.latency_range(npu.tables(network.workload, device)))
    if max_latency_s < least * (1 - 1e-6):
        raise BudgetError(
            f"no legal plan of {network.graph.name!r} on {device.name} runs within "
            f"{1e3 * max_latency_s:.4g} ms; the minimum is {1e3 * least:.4g} ms; raise it to that"
        )


def _inputs(graph: Graph, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in graph.inputs}


def _length(graph: Graph, batch: Mapping[str, Any]) -> int:
    return len(batch[graph.inputs[0]])


def _some(batches: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first batches that hold `count` samples together, the last of them cut."""
    kept: list[dict[str, Any]] = []
    for batch in batches:
        own = max(len(value) for value in batch.values() if np.ndim(value))
        kept.append({n: v[:count] if np.ndim(v) else v for n, v in batch.items()})
        count -= own
        if count <= 0:
            break
    return kept


def _kept(nearer: bool) -> str:
    return "kept" if nearer else "not kept: no nearer to the float outputs on calibration data"


def _silent(what: str, done: int, total: int) -> None:
    """No progress asked for."""
