"""The main job: from FP32 to a plan that deploys, ending at the first step that is good enough."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.encodings import Encodings
from jqnt.errors import BudgetError, ConfigError, nearest
from jqnt.formats import FP16
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.learn.amct_loop import amct_loop
from jqnt.learn.calibrate import checked_batches
from jqnt.learn.drafts import (
    Bench,
    Clock,
    Draft,
    Network,
    frozen_of,
    judged,
    kept_if,
    output_error,
    with_ranges,
    with_rounding,
    with_training,
)
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.qat import divergence_of
from jqnt.learn.search import search
from jqnt.learn.space import space
from jqnt.learn.staircase import Progress, Recovery, Step
from jqnt.observers import exact_mse
from jqnt.placement import plan
from jqnt.quantizers import Cast
from jqnt.rules import Rule
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Params

__all__ = ["STRATEGIES", "recover"]

Run = Callable[[dict[str, Any]], Mapping[str, Any]]
Batches = Sequence[Mapping[str, np.ndarray]]

_SEARCH_MACS = 5e9
"""Multiply-accumulates of one forward pass over the samples of the search that two cores can
afford."""


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
    strategy: str = "staircase",
    target: str = "onnxruntime",
    rules: Sequence[Rule] = (),
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Recovery:
    """The steps of a strategy, from the float network to the first that is good enough.

    "staircase": FP32, FP16, W8A8, equalization, AdaRound, mixed precision, QAT; mixed precision
    is searched within the budget, or, without one, within the latency of W8A8, unless `rules`,
    such as a plan found before, say the formats. "amct": Huawei AMCT's loop, see `amct_loop`;
    there `rules` hold from its first configuration on.

    Each step builds on the one before; it stops at the first whose metric is at most `max_drop`
    below the float model's and whose latency on `device` is at most `max_latency_s` (unless
    `run_all`). `evaluate(run)` gives the metric of a network, more is better; it is asked for
    the float simulation and for the integer emulation of every step. `calibration` is all that
    is learned from. Equalization, other ranges and AdaRound are kept by later steps only where
    they bring the outputs on the calibration data nearer to the float network's; each step
    reports itself.

    Raises ConfigError for a strategy that does not exist, BudgetError, with the minimum, for a
    budget that no legal plan meets, and DataError for data that are absent, empty, not finite or
    do not fit.
    """
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ConfigError(
            f"no strategy {strategy!r}; there are {known}{nearest(strategy, STRATEGIES)}"
        )
    if max_latency_s is not None and not max_latency_s > 0:
        raise ConfigError(f"a latency budget is positive, not {max_latency_s} s")
    if not max_drop >= 0:
        raise ConfigError(f"the drop allowed is at least 0 points, not {max_drop}")
    kept = [dict(batch) for batch in checked_batches(calibration)]
    bench = Bench(kept, evaluate, device, target, tuple(rules), progress or _silent, key)
    original = Network(graph, params)
    folded = Network(*fold_bn(*cleanup(graph, params)))
    if max_latency_s is not None:
        _check_budget(folded, device, max_latency_s)
    found = Recovery((), max_drop, np.inf if max_latency_s is None else max_latency_s)
    for step in STRATEGIES[strategy](bench, original, folded, max_latency_s):
        found = replace(found, steps=(*found.steps, step))
        if found.meets(step) and not run_all:
            break
    return found


def _staircase(
    bench: Bench, original: Network, folded: Network, max_latency_s: float | None
) -> Iterator[Step]:
    """The steps in order, each computed when it is asked for."""
    keys = jax.random.split(bench.key, 3)
    clock = Clock(bench.progress, 7)
    clock.start("FP32")
    yield judged(bench, clock, original, original.params, Encodings())
    clock.start("FP16")
    yield judged(bench, clock, folded, *_half(folded, bench.target))
    clock.start("W8A8")
    best = with_ranges(bench, folded, plan(folded.graph, target=bench.target))
    frozen = frozen_of(best)
    w8a8 = judged(bench, clock, folded, *frozen)
    yield w8a8
    clock.start("+ equalization")
    network = Network(*equalize(folded.graph, folded.params))
    even = with_ranges(bench, network, plan(network.graph, target=bench.target))
    evened = frozen_of(even)
    nearer = output_error(bench, network, evened) < output_error(bench, folded, frozen)
    yield judged(bench, clock, network, *evened, kept_if(nearer))
    if nearer:
        best, frozen = even, evened
    clock.start("+ AdaRound")
    rounded = frozen_of(with_rounding(bench, clock, best, keys[0]))
    nearer = output_error(bench, best.network, rounded) < output_error(bench, best.network, frozen)
    yield judged(bench, clock, best.network, *rounded, kept_if(nearer))
    clock.start("mixed precision")
    slowest = float(npu.latency_range(npu.tables(best.network.workload, bench.device))[1])
    limits = (max_latency_s, w8a8.latency_s, slowest)
    budget = next(limit for limit in limits if limit is not None)
    mixed, detail = _mixed(bench, clock, best, budget, keys[1])
    yield judged(bench, clock, mixed.network, *frozen_of(mixed), detail)
    clock.start("+ QAT")
    trained = with_training(bench, clock, mixed, keys[2])
    yield judged(bench, clock, trained.network, *frozen_of(trained))


def _mixed(
    bench: Bench, clock: Clock, draft: Draft, budget_s: float, key: PRNGKeyArray
) -> tuple[Draft, str]:
    """Formats searched within the latency budget, then the rounding learned under that plan."""
    network, keys = draft.network, jax.random.split(key)
    if bench.rules:
        given = plan(network.graph, bench.rules, target=bench.target)
        ranges = with_ranges(bench, network, given, weight_observer=exact_mse())
        decided = replace(draft, plan=given, theta=ranges.theta)
        return with_rounding(bench, clock, decided, keys[1]), "formats as the rules say"
    menu = [pair for pair in menu_of(bench.device) if "float32" not in pair]
    choices = with_choices(draft.plan, network.graph, menu, target=bench.target)
    # Few levels need clipped weight ranges; eight bits do well with all of the range.
    ranges = with_ranges(bench, network, choices, weight_observer=exact_mse())
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
    return with_rounding(bench, clock, decided, keys[1]), detail


def _half(network: Network, target: str) -> tuple[Params, Encodings]:
    """FP16 wherever the target's plan has a quantizer, weights and biases included."""
    base = plan(network.graph, target=target)
    names = (*base.specs, *base.tied, *base.biases)
    return freeze(network.graph, network.params, {name: Cast(FP16) for name in names})


def _check_budget(network: Network, device: npu.Device, max_latency_s: float) -> None:
    """Raises BudgetError before any work is spent on a hopeless budget."""
    least, _ = (float(x) for x in npu.latency_range(npu.tables(network.workload, device)))
    if max_latency_s < least * (1 - 1e-6):
        raise BudgetError(
            f"no legal plan of {network.graph.name!r} on {device.name} runs within "
            f"{1e3 * max_latency_s:.4g} ms; the minimum is {1e3 * least:.4g} ms; raise it to that"
        )


def _inputs(graph: Graph, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in graph.inputs}


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


def _silent(what: str, done: int, total: int) -> None:
    """No progress asked for."""


STRATEGIES: dict[str, Callable[..., Iterator[Step]]] = {
    "staircase": _staircase,
    "amct": amct_loop,
}
"""`strategy(bench, original, folded, max_latency_s)` yields its steps, the float model first."""
