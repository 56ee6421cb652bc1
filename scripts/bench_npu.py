#!/usr/bin/env python3
"""The NPU cost model against measured latencies, Vela's estimates and its own laws.

bench_npu.py [--latencies CSV] [--graphs DIR] [--vela CSV] [--only TABLE] [--json] [--data DIR]

TABLE is one of hexagon, ethos, formats, laws, speed. Everything is computed in this run; a row
without a bar only informs.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from jqnt import npu
from jqnt.errors import JqntError
from jqnt.npu.baseline import linear_baseline
from jqnt.npu.cost import group_costs, with_blocks
from jqnt.npu.elements import ROOFLINE
from jqnt.npu.fit_device import Fitted, Measurement, fit_devices
from jqnt.npu.knobs import HEXAGON
from jqnt.npu.latencies import LatencyRow, measurements_of, read_graphs, read_latencies
from jqnt.npu.smooth import RELAXED
from jqnt.npu.sweeps import layer_workload, read_sweep
from jqnt.npu.union import union
from jqnt.npu.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JQNT_DATA") or ROOT.parent / "shared" / "data")
LEFT_OUT = {"SA7255P ADP", "SA8775P ADP"}  # listed twice; runs in two groups four times apart
PROFILES = {"u55-128": "ethos-u55-128", "u65-512": "ethos-u65-512", "u85-512": "ethos-u85-512"}
Row = dict[str, Any]


class Inputs(NamedTuple):
    """The files to read."""

    latencies: Path
    graphs: Path
    vela: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with npu/")
    parser.add_argument("--latencies", type=Path, help="CSV of measured network latencies")
    parser.add_argument("--graphs", type=Path, help="folder of <model>.onnx")
    parser.add_argument("--vela", type=Path, help="CSV of single layers with cycles")
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = args.data / "npu"
    inputs = Inputs(
        args.latencies or folder / "dev_latencies.csv",
        args.graphs or folder / "graphs",
        args.vela or folder / "vela_dev.csv",
    )
    rows: list[Row] = []
    try:
        for name in [args.only] if args.only else TABLES:
            for found in TABLES[name](inputs):
                rows.append(found)
                if not args.json:
                    show(found)
    except JqntError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def row(name: str, figure: float, unit: str, bar: str | None, holds: Any, detail: str = "") -> Row:
    """One figure beside its bar."""
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar,
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip


def show(r: Row) -> None:
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:62} {r['figure']:>11.4g} {r['unit']:6} {r['bar'] or '':14} {mark:6} "
        f"{r['detail']}",
        flush=True,
    )


# ---------------------------------------------------------------- 1. measured networks


def hexagon(inputs: Inputs) -> Iterator[Row]:
    """Leave-one-model-out errors, the linear baseline's on the same rows beside them."""
    rows = read_latencies(inputs.latencies, without=LEFT_OUT)
    workloads = read_graphs(inputs.graphs, {r.model for r in rows})
    pairs = measurements_of(rows, workloads)
    named = sorted({m.device for _, m in pairs})
    start = npu.device("generic-hexagon")
    begin = time.perf_counter()
    fitted = fit_devices({d: replace(start, name=d) for d in named}, [m for _, m in pairs], HEXAGON)
    seconds = time.perf_counter() - begin
    free = sum(bool(knob.apart) for knob in HEXAGON)
    yield row("hexagon free parameters per device", free, "", "<= 8", free <= 8)
    yield row("hexagon fit and leave-one-out", seconds, "s", None, None)
    for precision, bar in (("w8a8", 15.0), ("float", 8.0), ("w8a16", None)):
        yield from _precision(precision, bar, pairs, fitted, workloads)
    yield from _ratio(pairs, fitted)
    yield from _outlier(pairs, fitted, workloads)


class Errors(NamedTuple):
    """On one device: mean absolute percentage error, rank correlation, share within 10 %."""

    mape: float
    rho: float
    within: float


def _errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    off = np.abs(predicted / measured - 1)
    rho = float(spearmanr(predicted, measured)[0]) if len(off) > 2 else float("nan")
    return Errors(100 * float(off.mean()), rho, 100 * float((off <= 0.1).mean()))


def _precision(
    precision: str,
    bar: float | None,
    pairs: Sequence[tuple[LatencyRow, Measurement]],
    fitted: Fitted,
    workloads: dict[str, Workload],
) -> Iterator[Row]:
    ours: dict[str, Errors] = {}
    theirs: dict[str, Errors] = {}
    for device in sorted({m.device for _, m in pairs}):
        chosen = [
            i for i, (r, m) in enumerate(pairs) if (r.precision, m.device) == (precision, device)
        ]
        if len(chosen) < 5:
            continue
        measured = np.array([pairs[i][1].latency_s for i in chosen])
        ours[device] = _errors(fitted.held_out_s[chosen], measured)
        features = np.array([_counts(pairs[i][0], workloads) for i in chosen])
        rest = [np.arange(len(chosen)) != k for k in range(len(chosen))]
        linear = [
            linear_baseline(features[keep], measured[keep], features[~keep][0]) for keep in rest
        ]
        theirs[device] = _errors(np.array(linear), measured)
        detail = f"linear {theirs[device].mape:.1f} %, rho {theirs[device].rho:.3f}"
        detail = f"rho {ours[device].rho:.3f}, within 10 %: {ours[device].within:.0f} %; {detail}"
        yield row(f"{precision} MAPE {device}", ours[device].mape, "%", None, None, detail)
    if not ours:
        return
    middle = statistics.median(e.mape for e in ours.values())
    linear_middle = statistics.median(e.mape for e in theirs.values())
    rho = statistics.median(e.rho for e in ours.values())
    least = min(e.rho for e in ours.values())
    judged = bar is not None
    yield row(
        f"{precision} MAPE, median over devices", middle, "%", f"<= {bar:g}" if judged else None,
        middle <= bar if judged else None, f"linear {linear_middle:.1f} %",
    )  # fmt: skip
    yield row(
        f"{precision} Spearman, least over devices", least, "", ">= 0.95" if judged else None,
        least >= 0.95 if judged else None,
        f"median {rho:.3f}; linear {min(e.rho for e in theirs.values()):.3f}",
    )  # fmt: skip
    if precision == "w8a8":
        ratio = middle / linear_middle
        yield row("w8a8 error over that of the baseline", ratio, "", "<= 0.6", ratio <= 0.6)
        worst = max(ours[d].mape / theirs[d].mape for d in ours)
        yield row("w8a8 error over baseline's, worst device", worst, "", "<= 1", worst <= 1)


def _counts(r: LatencyRow, workloads: dict[str, Workload]) -> list[float]:
    w = workloads[r.model]
    nodes = sum(len(names) for names in w.nodes)
    parameters = float(np.sum(w.weight_elements) + np.sum(w.bias_elements))
    return [1.0, float(r.layers or nodes), parameters, float(np.sum(w.dims.macs))]


def _ratio(pairs: Sequence[tuple[LatencyRow, Measurement]], fitted: Fitted) -> Iterator[Row]:
    """W8A16 over W8A8, held out, against the measured ratio."""
    at = {(r.model, m.pair, m.device): i for i, (r, m) in enumerate(pairs)}
    for model in sorted({r.model for r, _ in pairs}):
        off = []
        for device in sorted({m.device for _, m in pairs}):
            both = [at.get((model, pair, device)) for pair in ("w8a16", "w8a8")]
            if None in both:
                continue
            wide, narrow = (i for i in both if i is not None)
            said = fitted.held_out_s[wide] / fitted.held_out_s[narrow]
            seen = pairs[wide][1].latency_s / pairs[narrow][1].latency_s
            off.append((100 * abs(said / seen - 1), f"{device} {said:.2f} (measured {seen:.2f})"))
        if off:
            middle = statistics.median(error for error, _ in off)
            detail = ", ".join(text for _, text in off)
            yield row(
                f"W8A16 / W8A8 of {model}, median error over devices", middle, "%", "<= 20",
                middle <= 20, f"worst {max(off)[0]:.1f} %: {detail}",
            )  # fmt: skip


def _outlier(
    pairs: Sequence[tuple[LatencyRow, Measurement]],
    fitted: Fitted,
    workloads: dict[str, Workload],
) -> Iterator[Row]:
    """What makes networks cheap or dear beside their counts: the input's normalization.

    Mean and deviation per channel are a subtraction and a true division of an image whose three
    channels fill a vector of 32; a network that scales its input by one number has neither.
    """
    devices = list(fitted.devices.values())
    for model, w in workloads.items():
        divides = [i for i, op in enumerate(w.ops) if op == "Div"]
        if not any(r.model == model and m.pair == "w8a8" for r, m in pairs):
            continue
        shares = []
        for device in devices:
            cost = np.asarray(group_costs(w, device, device.pair("w8a8")).latency_s)
            shares.append(100 * cost[divides].sum() / (cost.sum() + float(device.graph_s)))
        yield row(f"share of per-channel divisions, w8a8 {model}", statistics.median(shares), "%",
                  None, None)  # fmt: skip


# ---------------------------------------------------------------- 2. Vela


def ethos(inputs: Inputs) -> Iterator[Row]:
    """Per layer, against Vela's cycles; a plain roofline beside it."""
    rows = read_sweep(inputs.vela)
    every: list[float] = []
    for config, profile in PROFILES.items():
        chosen = [r for r in rows if r.config == config]
        if not chosen:
            continue
        device = npu.device(profile)
        joined = with_blocks(union([layer_workload(r) for r in chosen]), device)
        tables = {
            pair: np.asarray(group_costs(joined, device, device.pair(pair)).latency_s)
            for pair in {r.pair for r in chosen}
        }
        said = np.array([tables[r.pair][i] * r.clock_hz for i, r in enumerate(chosen)])
        seen = np.array([r.cycles for r in chosen])
        flat = _plain_roofline(joined, device, [r.pair for r in chosen]) * chosen[0].clock_hz
        ops = np.array([r.op for r in chosen])
        for op in sorted(set(ops)):
            own = _errors(said[ops == op], seen[ops == op])
            plain = _errors(flat[ops == op], seen[ops == op])
            judged = (config, op) == ("u55-128", "conv")
            detail = f"rho {own.rho:.4f}, within 10 %: {own.within:.0f} %, n {sum(ops == op)}; "
            detail += f"plain roofline {plain.mape:.1f} %"
            yield row(f"{config} {op} MAPE", own.mape, "%", "<= 15" if judged else None,
                      own.mape <= 15 if judged else None, detail)  # fmt: skip
            if judged:
                yield row(f"{config} {op} Spearman", own.rho, "", ">= 0.995", own.rho >= 0.995)
        every += list(100 * np.abs(said / seen - 1))
        own = _errors(said, seen)
        yield row(f"{config} all operators MAPE", own.mape, "%", None, None, f"rho {own.rho:.4f}")
    if every:
        mean = statistics.fmean(every)
        yield row("all operators and configurations MAPE", mean, "%", "<= 18", mean <= 18)


def _plain_roofline(w: Workload, device: npu.Device, pairs: Sequence[str]) -> np.ndarray:
    """max(macs / rate, bytes / bandwidth) with features where the profile has them."""
    rate = float(device.macs_per_s["w8a8"])
    bits = np.array([device.pair(pair).weight_bits for pair in pairs])
    weights = w.weight_elements * bits / 8
    features = w.in_elements + w.out_elements
    dram, chip = float(device.dram_bytes_per_s), float(device.vtcm_bytes_per_s)
    assert device.array is not None
    if device.array.features_on_chip:
        memory = np.maximum(features / chip, weights / dram)
    else:
        memory = (features + weights) / dram
    return np.maximum(np.asarray(w.dims.macs) / rate, memory)


# ---------------------------------------------------------------- 3. formats


def formats(inputs: Inputs) -> Iterator[Row]:
    """What 4-bit weights gain on a Hexagon, by operator."""
    device = npu.device("snapdragon-8-gen-3")
    cases = {
        "3x3 convolution, 512 to 512, 7x7": (512, 512, 3, 7),
        "memory-bound 1x1 convolution, 2048 to 2048, 7x7": (2048, 2048, 1, 7),
    }
    for name, (inner, outer, kernel, size) in cases.items():
        shape = (size, size, inner, size, size, outer, kernel, kernel, 1)
        layer = _layer("conv", shape)
        eight, four = (float(npu.latency(layer, pair, device)) for pair in ("w8a8", "w4a8"))
        gains = kernel == 1
        yield row(f"W4 over W8 time, {name}", four / eight, "", "< 1" if gains else "= 1",
                  four < eight if gains else four == eight)  # fmt: skip


def _layer(op: str, shape: tuple[int, ...]) -> Workload:
    from jqnt.npu.sweeps import SweepRow

    return layer_workload(SweepRow("layer", op, shape, "w8a8", "", 1.0, 1.0))


# ---------------------------------------------------------------- 4. laws


def laws(inputs: Inputs) -> Iterator[Row]:
    """Exact equals relaxed at one-hot points; slopes; monotone in bits; above the roofline."""
    device = npu.device("snapdragon-8-gen-3")
    workloads = read_graphs(inputs.graphs, {p.stem for p in inputs.graphs.glob("*.onnx")})
    key = np.random.default_rng(0)
    apart, relaxed, below, falls = 0.0, 0.0, 0.0, 0.0
    for w in workloads.values():
        table = npu.tables(w, device)
        loose = npu.tables(w, device, calculus=RELAXED)
        relaxed = max(relaxed, _relative(loose.latency_s, table.latency_s))
        columns = key.integers(len(table.pairs), size=len(w.groups))
        rows = jax.nn.one_hot(columns, len(table.pairs))
        exact = (
            float(table.constant_s)
            + np.asarray(table.latency_s, np.float64)[np.arange(len(columns)), columns].sum()
        )
        apart = max(apart, abs(float(npu.expected_latency(table, rows)) / exact - 1))
        flat = npu.tables(w, device, elements=ROOFLINE)
        bound = np.asarray(flat.latency_s).sum(0)
        total = np.asarray(table.latency_s).sum(0)
        below = max(below, float(np.max(bound / total)))
        by_name = {pair.name: float(t) for pair, t in zip(table.pairs, total, strict=True)}
        falls = max(falls, by_name["w4a8"] / by_name["w8a8"], by_name["w8a8"] / by_name["w8a16"])
    yield row("expectation against the exact sum at one-hot points", apart, "", "<= 1e-6",
              apart <= 1e-6)  # fmt: skip
    yield row("relaxed against exact, all groups and pairs", relaxed, "", "<= 1e-6",
              relaxed <= 1e-6)  # fmt: skip
    yield row("roofline over full model, largest network", below, "", "<= 1", below <= 1)
    yield row("narrower over wider formats, largest", falls, "", "<= 1", falls <= 1)
    worst = max(_slopes(w, device) for w in workloads.values())
    yield row("gradient against differences of the relaxed form", worst, "", "<= 1e-3",
              worst <= 1e-3, "relative, device numbers, worst of all networks")  # fmt: skip


def _relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(b)
    return float(np.max(np.abs(a[both] / b[both] - 1)))


def _slopes(w: Workload, device: npu.Device) -> float:
    """The largest relative difference between d latency and its central differences.

    The relaxed form has kinks, so the step is small: sums in float64, device numbers in float32.
    """

    def seconds(d: npu.Device) -> jax.Array:
        return npu.expected_latency(npu.tables(w, d, ["w8a8"], calculus=RELAXED), ones)

    def changed(name: str, factor: float) -> tuple[float, float]:
        value = np.float32(float(getattr(device, name)) * factor)
        return float(value), float(seconds(replace(device, **{name: value})))

    worst = 0.0
    with jax.enable_x64(True):
        ones = jnp.ones((len(w.groups), 1))
        slope = jax.grad(seconds)(device)
        for name in ("dram_bytes_per_s", "vtcm_bytes_per_s", "dispatch_s", "serial_s", "graph_s"):
            (high, up), (low, down) = changed(name, 1 + 1e-4), changed(name, 1 - 1e-4)
            difference = (up - down) / (high - low)
            found = float(getattr(slope, name))
            worst = max(worst, abs(found / difference - 1) if difference else abs(found))
    return worst


# ---------------------------------------------------------------- 5. speed


def speed(inputs: Inputs) -> Iterator[Row]:
    """Seconds of latency and gradient after compilation; growth with the number of groups."""
    device = _eight(npu.device("snapdragon-8-gen-3"))
    found = read_graphs(inputs.graphs, {p.stem for p in inputs.graphs.glob("*.onnx")})
    near = min(found, key=lambda name: abs(len(found[name].groups) - 200))
    work = found[near]
    taken = _median(_whole(work, device), device)
    size = f"{len(work.groups)} groups, {len(device.pairs)} pairs"
    yield row(f"tables and gradient in the device, {near}, {size}", 1e3 * taken, "ms", None, None)
    times = {}
    for copies in (1, 5, 25):
        many = union([work] * copies)
        table = npu.tables(many, device)
        step = jax.jit(jax.value_and_grad(partial(_expected, table)))
        count = len(many.groups)
        times[count] = _median(step, jnp.zeros((count, len(device.pairs))))
    (least, first), (_, middle), (most, last) = times.items()
    yield row(f"latency and gradient, {size}", 1e3 * first, "ms", "< 1", first < 1e-3)
    bar = 1.2 * most / least
    yield row(f"time of {most} groups over that of {least}", last / first, "", f"<= {bar:g}",
              last / first <= bar, f"{1e3 * middle:.3f} and {1e3 * last:.3f} ms")  # fmt: skip


def _eight(device: npu.Device) -> npu.Device:
    """The device with eight pairs of formats: narrower weights run as its narrowest."""
    more = {"w2a8": "w4a8", "w2a16": "w4a16", "w4float16": "float16"}

    def grown(numbers: dict[str, Any]) -> dict[str, Any]:
        return numbers | {name: numbers[old] for name, old in more.items()}

    return replace(
        device,
        pairs=(*device.pairs, *(npu.pair_named(name) for name in more)),
        macs_per_s=grown(device.macs_per_s),
        depthwise_macs_per_s=grown(device.depthwise_macs_per_s),
    )


def _whole(w: Workload, device: npu.Device) -> Callable[[Any], Any]:
    ones = jnp.full((len(w.groups), len(device.pairs)), 1 / len(device.pairs))
    return jax.jit(jax.value_and_grad(lambda d: npu.expected_latency(npu.tables(w, d), ones)))


def _expected(priced: npu.Tables, logits: jax.Array) -> jax.Array:
    return npu.expected_latency(priced, jax.nn.softmax(logits))


def _median(run: Callable[[Any], Any], at: Any, repeats: int = 50) -> float:
    jax.block_until_ready(run(at))
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(at))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


TABLES: dict[str, Callable[[Inputs], Iterator[Row]]] = {
    "hexagon": hexagon,
    "ethos": ethos,
    "formats": formats,
    "laws": laws,
    "speed": speed,
}

if __name__ == "__main__":
    sys.exit(main())
