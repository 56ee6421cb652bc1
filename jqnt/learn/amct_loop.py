"""Huawei AMCT's loop: more data, then the worst layers left out, other parameters, training."""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.encodings import Encodings
from jqnt.errors import ConfigError
from jqnt.formats import Integer, format_named
from jqnt.learn.drafts import (
    SQNR,
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
from jqnt.learn.layer_quality import layer_quality
from jqnt.learn.prices import menu_of
from jqnt.learn.staircase import Step
from jqnt.observers import MINMAX, entropy, exact_mse, mse, percentile
from jqnt.placement import plan
from jqnt.plan import Spec, bind

__all__ = ["COSINE", "SHARE", "amct_loop"]

COSINE = 0.99
"""A layer whose output is no nearer than that to the float one is left out whatever it takes."""

SHARE = 0.2
"""Of the others, this share of all layers may be left out, the worst first."""

_ACTIVATIONS = {
    "SQNR": SQNR, "min-max": MINMAX, "percentile": percentile(), "MSE": mse(),
    "entropy": entropy(),
}  # fmt: skip
_WEIGHTS = {"min-max": MINMAX, "MSE": exact_mse()}


def amct_loop(
    bench: Bench, original: Network, folded: Network, max_latency_s: float | None
) -> Iterator[Step]:
    """The steps, each computed when it is asked for.

    1. the target's defaults, changed by the rules, with ranges of the first batch alone;
    2. more batches, twice as many each time, until all are used;
    3. the worst layers left out one by one (quant_enable: false): in the device's float format,
       in its widest integers if it has none. A layer is judged by itself, on the cosine of its
       output to the float one (`layer_quality`), and goes with what must share its formats. All
       below `COSINE` go, of the others up to `SHARE` of all layers; those stay for which the
       budget has no room;
    4. other parameters: every algorithm for the ranges of activations and weights, the one
       nearest to the float outputs; then learned rounding (ada_quantize);
    5. quantization-aware training.

    Source: AMCT's tuning guide, config.json: batch_num, quant_enable, activation_quant_params and
    weight_quant_params.
    """
    network, keys = folded, jax.random.split(bench.key, 2)
    base = plan(network.graph, bench.rules, target=bench.target)
    count = len(bench.calibration)
    doubled = [2**i for i in range(max(count - 1, 0).bit_length())]
    sizes = [*doubled, count]
    clock = Clock(bench.progress, len(sizes) + 5)
    clock.start("FP32")
    yield judged(bench, clock, original, original.params, Encodings())
    for size in sizes:
        clock.start("defaults" if size == 1 else f"batch_num {size}")
        some = frozen_of(with_ranges(bench, network, base, batches=size))
        yield judged(bench, clock, network, *some, f"{size} of {count} batches")
    draft = with_ranges(bench, network, base)
    for wider, names, cosine in _without(bench, draft, max_latency_s):
        draft = wider
        clock.start(f"- {names[0]}")
        more = f", with {', '.join(names[1:])}" if names[1:] else ""
        yield judged(bench, clock, network, *frozen_of(draft), f"cosine {cosine:.5f}{more}")
    clock.start("+ other ranges")
    other, how = _other_ranges(bench, clock, draft)
    yield judged(bench, clock, network, *frozen_of(other), how)
    clock.start("+ AdaRound")
    found = with_rounding(bench, clock, other, keys[0])
    before, after = (output_error(bench, network, frozen_of(d)) for d in (other, found))
    yield judged(bench, clock, network, *frozen_of(found), kept_if(after < before))
    clock.start("+ QAT")
    found = with_training(bench, clock, found if after < before else other, keys[1])
    yield judged(bench, clock, network, *frozen_of(found))


def _without(
    bench: Bench, draft: Draft, max_latency_s: float | None
) -> Iterator[tuple[Draft, list[str], float]]:
    """One group of layers after the other in a wide format: the draft, the layers from the worst
    on, the cosine of that one."""
    graph, params = draft.network.graph, draft.params
    quality = layer_quality(graph, params, bind(draft.theta, draft.plan), bench.calibration)
    groups = []
    for tensors, specs in _wide_groups(bench, draft):
        names = [n.name for n in graph.nodes if n.name in quality and set(n.inputs) & set(tensors)]
        if names:
            names.sort(key=lambda name: quality[name].cosine)
            groups.append((quality[names[0]].cosine, names, dict(zip(tensors, specs, strict=True))))
    most, out = math.ceil(SHARE * len(quality)), 0
    for cosine, names, specs in sorted(groups, key=lambda group: group[0]):
        if cosine >= COSINE and out + len(names) > most:
            continue
        chosen = draft.plan.replace(specs={**draft.plan.specs, **specs})
        wider = with_ranges(bench, draft.network, chosen)
        if not _affordable(bench, wider, max_latency_s):
            continue
        draft, out = wider, out + len(names)
        yield draft, names, cosine


def _wide_groups(bench: Bench, draft: Draft) -> Iterator[tuple[tuple[str, ...], tuple[Spec, ...]]]:
    """Tensors that change formats together, and their specs in the widest formats there are."""
    used = draft.plan.specs.values()
    weights, activations = (
        dict.fromkeys(s.format.name for s in used if (s.role == "weight") == is_weight)
        for is_weight in (True, False)
    )
    wide = _wide(bench.device)
    menu = [*itertools.product(weights, activations), *wide]
    laid = with_choices(draft.plan, draft.network.graph, menu, target=bench.target)
    for choice in laid.choices.values():
        now = tuple(draft.plan.specs[tensor] for tensor in choice.tensors)
        for pair in wide:
            found = [option for option in choice.options if _in(option, pair)]
            if found and not _in(now, pair):
                yield choice.tensors, found[0]
            if found:
                break


def _wide(device: npu.Device) -> list[tuple[str, str]]:
    """The (weight, activation) formats of what is left out, the best first."""
    pairs = [pair for pair in menu_of(device) if "float32" not in pair]
    floats = [pair for pair in pairs if pair[0] == pair[1] and not pair[0].startswith("int")]
    integers = [pair for pair in pairs if pair[1].startswith("int")]
    integers.sort(key=lambda pair: [format_named(name).bits for name in reversed(pair)])
    return [*floats, *integers[-1:]]


def _in(specs: Sequence[Spec], pair: tuple[str, str]) -> bool:
    """Whether weights and activations have these formats, integers of either sign."""
    formats = {"weight": format_named(pair[0]), "activation": format_named(pair[1])}

    def same(spec: Spec) -> bool:
        wanted = formats["weight" if spec.role == "weight" else "activation"]
        if isinstance(wanted, Integer) and isinstance(spec.format, Integer):
            return wanted.bits == spec.format.bits
        return wanted == spec.format

    return all(map(same, specs))


def _affordable(bench: Bench, draft: Draft, max_latency_s: float | None) -> bool:
    """Whether the device can run it, within the budget if there is one."""
    try:
        latency = npu.latency(draft.network.workload, frozen_of(draft)[1], bench.device)
    except ConfigError:
        return False
    return max_latency_s is None or float(latency) <= max_latency_s * (1 + 1e-6)


def _other_ranges(bench: Bench, clock: Clock, draft: Draft) -> tuple[Draft, str]:
    """The algorithms for ranges that bring the outputs nearest to the float ones, and which:
    first of the activations', then, under that one, of the weights'."""
    told = clock.inner("ranges")
    tried: list[tuple[float, str, str, Draft]] = []

    def attempt(activations: str, weights: str) -> None:
        told(len(tried), len(_ACTIVATIONS) + len(_WEIGHTS) - 1, None)
        found = with_ranges(
            bench, draft.network, draft.plan, observer=_ACTIVATIONS[activations],
            weight_observer=_WEIGHTS[weights],
        )  # fmt: skip
        noise = output_error(bench, draft.network, frozen_of(found))
        tried.append((noise, activations, weights, found))

    first, *others = _WEIGHTS
    for name in _ACTIVATIONS:
        attempt(name, first)
    leader = min(tried, key=lambda entry: entry[0])[1]
    for name in others:
        attempt(leader, name)
    noise, activations, weights, best = min(tried, key=lambda entry: entry[0])
    gain = f"{-noise:.1f} dB at the outputs, {-tried[0][0]:.1f} before"
    return best, f"activations by {activations}, weights by {weights}: {gain}"
