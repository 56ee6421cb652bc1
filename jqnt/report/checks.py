"""The deployment check list as rows that pass or fail, each with its figure and its bar."""

from dataclasses import dataclass

import numpy as np

from jqnt.compare import Row
from jqnt.learn.staircase import Recovery, Step
from jqnt.metrics import Metric
from jqnt.npu import Device

__all__ = ["Check", "Evidence", "checks"]

_SLOW_SHARE = 0.5
"""A layer that takes more than this share of the latency is a reason to look at it first."""


@dataclass(frozen=True)
class Check:
    """What was looked at, the figure found, the bar, whether it holds, and what to do if not."""

    name: str
    figure: str
    bar: str
    holds: bool
    advice: str = ""


@dataclass(frozen=True)
class Evidence:
    """What the check list is about: the chosen step and what is known of it."""

    recovery: Recovery
    step: Step
    device: Device
    metric: Metric
    calib_samples: int
    rows: tuple[Row, ...]


def checks(evidence: Evidence) -> tuple[Check, ...]:
    """The guide's list: samples, per-channel weights, cosine, SNR, metric, latency, slow layers,
    fallbacks, on-chip memory, layout, integers against simulation."""
    makers = (
        _samples,
        _per_channel,
        _cosine,
        _sqnr,
        _metric_loss,
        _budget,
        _slow_layers,
        _fallbacks,
        _on_chip,
        _layout,
        _integers,
    )
    return tuple(check for maker in makers if (check := maker(evidence)) is not None)


def _samples(e: Evidence) -> Check:
    advice = "use 500 to 1000 samples that cover the use and its edges"
    return Check(
        "calibration samples", str(e.calib_samples), "at least 200", e.calib_samples >= 200, advice
    )


def _per_channel(e: Evidence) -> Check | None:
    weights = {cost.weight for cost in e.step.layers if cost.weight} & set(e.step.encodings)
    if not weights:
        return None
    fine = sum(e.step.encodings[w].granularity.axis is not None for w in weights)
    return Check(
        "weights with a scale per channel",
        f"{fine} of {len(weights)}",
        "all",
        fine == len(weights),
        "quantize weights per channel where the target allows it",
    )


def _cosine(e: Evidence) -> Check | None:
    return _worst(e, "lowest cosine of a layer", "cosine", 0.995, "", "{:.4f}")


def _sqnr(e: Evidence) -> Check | None:
    return _worst(e, "lowest SNR of a layer", "sqnr_db", 30.0, " dB", "{:.1f}")


def _worst(e: Evidence, name: str, field: str, bar: float, unit: str, pattern: str) -> Check | None:
    if not e.rows:
        return None
    worst = min(e.rows, key=lambda row: getattr(row.simulation, field))
    value = getattr(worst.simulation, field)
    return Check(
        name,
        f"{pattern.format(value)}{unit} ({worst.tensor})",
        f"> {bar:g}{unit}",
        value > bar,
        f"give {worst.node or worst.tensor} more bits, or learn its rounding and ranges",
    )


def _metric_loss(e: Evidence) -> Check:
    drop, bar = e.recovery.drop(e.step), e.recovery.max_drop
    unit = " points" if e.metric.unit == "%" else ""
    return Check(
        f"loss of {e.metric.name}",
        f"{drop:.3g}{unit}",
        f"at most {bar:g}{unit}",
        drop <= bar + 1e-9,
        "raise the latency budget, train longer, or accept a larger drop",
    )


def _budget(e: Evidence) -> Check | None:
    found, bar = e.step.latency_s, e.recovery.max_latency_s
    if not np.isfinite(bar):
        return None
    return Check(
        "predicted latency",
        "unknown" if found is None else f"{1e3 * found:.4g} ms",
        f"at most {1e3 * bar:.4g} ms",
        e.recovery.fits(e.step),
        f"{e.device.name} has no faster legal plan that keeps the metric: raise the budget",
    )


def _slow_layers(e: Evidence) -> Check | None:
    if not e.step.layers or not e.step.latency_s:
        return None
    slow = sorted(e.step.layers, key=lambda cost: -cost.latency_s)[:10]
    top = slow[0].latency_s / e.step.latency_s
    names = ", ".join(f"{cost.name} ({cost.bottleneck})" for cost in slow[:3])
    share = sum(cost.latency_s for cost in slow) / e.step.latency_s
    return Check(
        "slowest layer's share of the latency",
        f"{100 * top:.0f} % (ten slowest {100 * share:.0f} %: {names}, ...)",
        f"at most {100 * _SLOW_SHARE:.0f} %",
        top <= _SLOW_SHARE,
        f"split or thin out {slow[0].name}, or give it fewer bits",
    )


def _fallbacks(e: Evidence) -> Check | None:
    if not e.step.layers:
        return None
    fallen = [cost for cost in e.step.layers if cost.bottleneck == "cpu"]
    listed = ": " + ", ".join(f"{cost.op} {cost.name}" for cost in fallen[:4]) if fallen else ""
    return Check(
        "layers that fall back to the CPU",
        f"{len(fallen)}{listed}",
        "0",
        not fallen,
        "replace these operators by ones that the device runs",
    )


def _on_chip(e: Evidence) -> Check | None:
    capacity = float(np.asarray(e.device.vtcm_bytes))
    if not e.step.layers or not capacity:
        return None
    most = max(e.step.layers, key=lambda cost: cost.vtcm_bytes)
    share = most.vtcm_bytes / capacity
    return Check(
        "on-chip memory in use, at most",
        f"{100 * share:.3g} % ({most.name})",
        "> 70 %",
        share > 0.7,
        "the memory is larger than this model needs: run a larger batch or tile, or several "
        "models, at once",
    )


def _layout(e: Evidence) -> Check | None:
    graph = e.step.graph
    shapes = {n: info.shape for n in graph.inputs if (info := graph.info.get(n)) and info.shape}
    images = {n: shape for n, shape in shapes.items() if len(shape) == 4}
    if not images:
        return None
    first = [n for n, s in images.items() if s[1] in (1, 3, 4) and s[3] not in (1, 3, 4)]
    costly = [n for n in first if images[n][1] != 1]
    if costly:
        figure = f"{', '.join(costly)}: channels first"
    else:
        figure = "one channel: no transpose" if first else "channels last"
    return Check(
        "layout of image inputs",
        figure,
        "channels last (NHWC)",
        not costly,
        "feed NHWC and let the converter drop the transpose at the input",
    )


def _integers(e: Evidence) -> Check | None:
    found = [(row.integers.cosine, row) for row in e.rows if row.integers is not None]
    if not found:
        return None
    cosine, row = min(found, key=lambda pair: pair[0])
    return Check(
        "integers against simulation, lowest cosine",
        f"{cosine:.6f} ({row.tensor})",
        "> 0.9999",
        cosine > 0.9999,
        f"the simulation misses something of the integers at {row.node or row.tensor}",
    )
