#!/usr/bin/env python3
"""Bit allocation: published optima, enumerated and real networks, time, and AIMET-ONNX's AMP.

bench_allocation.py [--only ROW] [--json] [--data DIR] [--keep DIR]

ROW is one of hawq, enumeration, mobilenet, minilm, time, amp. The two fronts of real networks
take tens of minutes on two cores; with --keep a run that was cut off goes on from the roundings,
sensitivities and fronts that the folder holds. amp wants `.venv-peers`. Everything else is
measured in this run; a row without a bar only informs.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from allocation_amp import amp_rows
from allocation_front import CASES
from material import DATA, cifar10, digits, imagenet, model_path

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session
from jqnt.learn.allocate import allocate, tie
from jqnt.learn.calibrate import calibrate
from jqnt.learn.divergence import with_targets
from jqnt.learn.pareto import budgets_between, relaxed_front
from jqnt.learn.polish import fill, swap
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.search import search
from jqnt.learn.sensitivity import tensor_losses
from jqnt.learn.space import Space, space
from jqnt.learn.sweep import sweep
from jqnt.learn.trial import trial
from jqnt.placement import plan
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn

KEY = jax.random.key(0)
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--keep", type=Path, help="a folder for what the fronts can go on from")
    args = parser.parse_args()
    if not (args.data / "models").is_dir():
        print(f"error: no folder {args.data / 'models'}; give --data DIR", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in [args.only] if args.only else TABLES:
        rest = (args.keep,) if name in CASES else ()
        for found in TABLES[name](args.data, *rest):
            rows.append(found)
            if not args.json:
                show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def at_most(name: str, figure: float, unit: str, bar: float | None, detail: str = "") -> Row:
    """A figure that holds if it is no more than its bar."""
    holds = None if bar is None else bool(figure <= bar)
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar, "holds": holds,
        "detail": detail,
    }  # fmt: skip


def show(r: Row) -> None:
    bar = "" if r["bar"] is None else r["bar"] if isinstance(r["bar"], str) else f"<= {r['bar']:g}"
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:66} {r['figure']:>12.5g} {r['unit']:8} {bar:12} {mark:6} {r['detail']}",
        flush=True,
    )


# ---------------------------------------------------------------- 1. the HAWQ-V3 programs


def hawq(data: Path) -> Iterator[Row]:
    """All 18 optima; the relaxed search alone, polished, and finished exactly."""
    instances = list(_instances(data))
    wrong, slowest, invalid = 0.0, 0.0, 0
    gaps: dict[str, list[float]] = {"alone": [], "+ greedy fill": [], "+ 2-swap": []}
    for loss, cost, optimum in instances:
        budget, best = optimum["budget"], optimum["objective"]
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            found = allocate(loss, cost, budget)
            times.append(time.perf_counter() - begin)
        slowest = max(slowest, statistics.median(times))
        wrong = max(wrong, abs(found.loss / best - 1))
        invalid += not found.certificate.dual_bound <= best * (1 + 1e-9) <= found.loss * (1 + 2e-9)
        relaxed = relaxed_front(loss, cost, np.array([budget]), key=KEY)
        alone = np.asarray(relaxed.choice[0])
        filled = fill(loss, cost, budget, alone)
        swapped = swap(loss, cost, budget, filled)
        for name, choice in zip(gaps, (alone, filled, swapped), strict=True):
            gaps[name].append(100 * (loss[np.arange(len(loss)), choice].sum() / best - 1))
    yield at_most(f"HAWQ optima, {len(instances)}: relative error", wrong, "", 1e-8)
    yield at_most("HAWQ optima: slowest", 1e3 * slowest, "ms", 50, "median of 3")
    yield at_most("HAWQ certificates that do not hold", invalid, "", 0)
    for name, bar in (("alone", 4.0), ("+ greedy fill", None), ("+ 2-swap", 1.0)):
        detail = f"largest {max(gaps[name]):.3g} %; the best of the vertices drawn on the way"
        yield at_most(f"relaxed search {name}: mean gap", np.mean(gaps[name]), "%", bar, detail)


def _instances(data: Path) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    document = json.loads((data / "npu" / "hawq_instances.json").read_text())
    for instance in document["instances"]:
        layers = instance["layers"]
        labels = tie([tuple(p) for p in instance["ties"]], len(layers))
        summed = (labels == np.arange(labels.max() + 1)[:, None]).astype(float)
        loss = [[x["trace"] * x["dw2_4bit"], x["trace"] * x["dw2_8bit"]] for x in layers]
        costs = {
            "size": [[x["parameters"] / 2, x["parameters"]] for x in layers],
            "bops": [[x["bops"] / 64, x["bops"] / 16] for x in layers],
            "latency": [[x["latency_int4"], x["latency_int8"]] for x in layers],
        }
        for optimum in instance["optima"]:
            yield summed @ np.array(loss), summed @ np.array(costs[optimum["cost"]]), optimum


# ---------------------------------------------------------------- 2. enumeration


def enumeration(data: Path) -> Iterator[Row]:
    """What is found against the best of all plans, by the true loss on the same samples."""
    cases = (
        ("digits_resnet8_bn", digits(data).calib[:32], 6, 5),
        ("cifar10_resnet20", cifar10(data).calib[:16], 8, 3),
    )
    for stem, images, groups, options in cases:
        problem = _problem(data, stem, images, groups=groups, options=options)
        counts = [len(c.options) for c in problem.plan.choices.values()]
        plans = np.array(list(itertools.product(*map(range, counts))))
        rows = np.stack([problem.trial.branches(p) for p in plans])
        losses = problem.trial.losses(problem.params, problem.theta, rows, rows[0], problem.batches)
        costs = np.array([problem.prices.cost(p)[0] for p in plans])
        low, high = (float(v[0]) for v in problem.prices.range())
        for share in (0.15, 0.4, 0.7):
            budget = low + share * (high - low)
            begin = time.perf_counter()
            found = search(problem, [budget], key=KEY)
            took = time.perf_counter() - begin
            best = losses[costs <= budget].min()
            yield at_most(
                f"{stem}, budget {1e3 * budget:.3g} ms: above optimum",
                100 * (found.loss / best - 1), "%", 1.0,
                f"of {len(plans)} plans of {len(counts)} groups; {took:.1f} s",
            )  # fmt: skip


def _problem(
    data: Path, stem: str, images: np.ndarray, groups: int | None = None, options: int | None = None
) -> Space:
    """The search space on the embedded device, of its `groups` dearest choices."""
    graph, params, _ = import_onnx(model_path(data, stem))
    graph, params = fold_bn(*cleanup(graph, params))
    device, base = npu.device("embedded-demo"), plan(graph)
    work, menu = npu.workload(graph, params), menu_of(device)[:options]
    searched = with_choices(base, graph, menu)
    if groups is not None:
        table = prices(searched, work, device).table[0]
        spread = np.where(np.isfinite(table), table, -np.inf).max(1) - table.min(1)
        kept = np.argsort(-spread, kind="stable")[:groups]
        names = list(searched.choices)
        exclude = [name for i, name in enumerate(names) if i not in kept]
        searched = with_choices(base, graph, menu, exclude=exclude)
    batches = [{graph.inputs[0]: images}]
    theta = calibrate(lower(graph), params, searched, batches)
    priced = prices(searched, work, device)
    return space(graph, params, searched, theta, priced, batches, batch_size=len(images))


# ---------------------------------------------------------------- 4. time


def times(data: Path) -> Iterator[Row]:
    """Seconds and ratios, each measured warm where it says so."""
    yield from _table_times()
    yield from _sweep_times(data)
    yield from _sensitivity_times(data)


def _table_times() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    bits = np.arange(2, 14)
    loss = rng.lognormal(0, 2, (1000, 1)) * 4.0**-bits * rng.uniform(0.5, 2, (1000, 12))
    cost = rng.lognormal(0, 1, (1000, 1)) * bits / 8
    took = _median(lambda: allocate(loss, cost, float(cost.min(1).sum() * 2)))
    yield at_most("exact finish, 1,000 groups x 12 options", took, "s", 1.0)
    loss, cost = loss[:50], cost[:50]
    budgets = budgets_between(loss, cost, 18)[1:-1]

    def front(chosen: Sequence[float] | np.ndarray) -> Any:
        return jax.block_until_ready(relaxed_front(loss, cost, np.asarray(chosen), key=KEY))

    one, many = _median(lambda: front(budgets[8:9])), _median(lambda: front(budgets))
    detail = f"{1e3 * many:.3g} against {1e3 * one:.3g} ms, warm"
    yield at_most("front of 16 budgets from tables / one budget", many / one, "", 3.0, detail)


def _sweep_times(data: Path) -> Iterator[Row]:
    problem = _problem(data, "digits_resnet8_bn", digits(data).calib[:64])
    low, high = (float(v[0]) for v in problem.prices.range())
    budgets = [[b] for b in np.linspace(high, low, 18)[1:-1]]
    search(problem, budgets[0], steps=25, key=KEY)  # compiles
    begin = time.perf_counter()
    search(problem, budgets[8], key=KEY)
    one = time.perf_counter() - begin
    begin = time.perf_counter()
    sweep(problem, budgets, key=KEY)
    many = time.perf_counter() - begin
    detail = f"{many:.3g} against {one:.3g} s, compiled before"
    yield at_most("sweep of 16 budgets, network in the loop / one", many / one, "", 8.0, detail)


def _sensitivity_times(data: Path) -> Iterator[Row]:
    graph, params, _ = import_onnx(model_path(data, "imagenet_mobilenetv2_10"))
    graph, params = fold_bn(*cleanup(graph, params))
    menu = [(f"int{w}", f"uint{a}") for w in (2, 3, 4, 6, 8) for a in (4, 8, 16)]
    searched = with_choices(plan(graph), graph, menu)
    photos = imagenet(data, "unit").calib[:64]
    batches = [{"input": photos[i : i + 8]} for i in range(0, 64, 8)]  # what caches hold
    apply = lower(graph)
    theta = calibrate(session(graph, params), params, searched, batches)
    targets = with_targets(apply, params, batches)
    compiled: list[str] = []

    def heard(event: str, _seconds: float, fun_name: str = "", **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and "trial_losses" in fun_name:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    begin = time.perf_counter()
    own = trial(graph, params, searched)
    found = tensor_losses(own, params, theta, targets)
    took = time.perf_counter() - begin
    runs = sum(map(len, found.values()))
    detail = f"{runs} runs of {len(found)} tensors on 64 photos in batches of 8, with compilation"
    yield at_most("MobileNetV2 sensitivities, 5 x 3 widths", took, "s", 180.0, detail)
    yield at_most("  programs compiled", len(compiled), "", 1)


def _median(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


TABLES: dict[str, Callable[..., Iterator[Row]]] = {
    "hawq": hawq,
    "enumeration": enumeration,
    **CASES,
    "time": times,
    "amp": amp_rows,
}

if __name__ == "__main__":
    sys.exit(main())
