"""`jqnt search`: bits layer by layer within budgets of latency, size, energy and operations."""

import json as jsonlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer

from jqnt.choices import with_choices
from jqnt.cli.console import emit
from jqnt.cli.judge import figures, judged_table
from jqnt.cli.loading import metric_of, rules_of
from jqnt.cli.options import (
    AsJson,
    BatchSize,
    Calib,
    Device,
    EncodingsVersion,
    Key,
    MaxLatency,
    MetricName,
    Model,
    OptionalEvaluation,
    Out,
    RulesFile,
    Target,
)
from jqnt.cli.results import write_model
from jqnt.data import load_data
from jqnt.errors import ConfigError
from jqnt.freeze import freeze
from jqnt.frozen import Frozen, check_out
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.rules_toml import plan_rules, rules_text
from jqnt.learn.calibrate import calibrate
from jqnt.learn.controller import LAGRANGIAN, pid
from jqnt.learn.evidence import allocation, certificate, front_points
from jqnt.learn.ledger import Ledger, Report
from jqnt.learn.pareto import joint_budgets
from jqnt.learn.prices import UNITS, menu_of, prices
from jqnt.learn.qat import divergence_of
from jqnt.learn.round_choices import round_choices
from jqnt.learn.search import Found
from jqnt.learn.search import search as searched
from jqnt.learn.space import Space, space
from jqnt.learn.sweep import sweep
from jqnt.npu import device as load_device
from jqnt.npu import workload
from jqnt.npu.layers import layer_costs
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.report import layer_table, progress_bar, table_of
from jqnt.report.front import front_csv, front_svg
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize as equalized
from jqnt.transforms.fold_bn import fold_bn

__all__ = ["search"]

_CONTROLLERS = {"lagrangian": LAGRANGIAN, "pid": pid()}

Budget = float | None


def search(
    model: Model,
    calib: Calib,
    device: Device,
    max_latency_ms: MaxLatency = None,
    max_size_mb: Annotated[
        Budget, typer.Option(help="budget of the weights in 10^6 bytes", show_default=False)
    ] = None,
    max_energy_mj: Annotated[
        Budget, typer.Option(help="energy budget in millijoules", show_default=False)
    ] = None,
    max_gbitops: Annotated[
        Budget,
        typer.Option(
            help="budget of 10^9 bit operations (products times both widths)", show_default=False
        ),
    ] = None,
    converting: Annotated[
        bool,
        typer.Option("--conversions", help="count what changes of format between layers cost"),
    ] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="also a front over budgets of the first kind given")
    ] = False,
    points: Annotated[int, typer.Option(help="budgets on the front")] = 16,
    evaluation: OptionalEvaluation = None,
    metric: MetricName = "top1",
    target: Target = "onnxruntime",
    rules: RulesFile = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="a tensor or node whose formats stay the plan's (repeatable)"),
    ] = None,
    equalize: Annotated[
        bool, typer.Option("--equalize", help="make channel ranges of neighbours equal first")
    ] = False,
    adaround: Annotated[
        bool,
        typer.Option("--adaround", help="learn the rounding of every weight in every width first"),
    ] = False,
    relaxation: Annotated[
        Literal["softmax", "gumbel", "bits", "hgq", "dq"],
        typer.Option(help="how choices become continuous: mixtures, or real-valued bits"),
    ] = "softmax",
    multiplier: Annotated[
        Literal["lagrangian", "pid"], typer.Option(help="how the price of a budget is found")
    ] = "lagrangian",
    steps: Annotated[int, typer.Option(help="optimization steps; 0 for tables only")] = 150,
    samples: Annotated[
        int, typer.Option(help="calibration samples on which plans are compared, at most")
    ] = 128,
    encodings_version: EncodingsVersion = "1.0.0",
    batch_size: BatchSize = 64,
    key: Key = 0,
    out: Out = None,
    json: AsJson = False,
) -> None:
    """Search the bits of each layer within budgets on a device; with --pareto, a whole front."""
    if out is not None:
        check_out(out)
    asked = _budgets(max_latency_ms, max_size_mb, max_energy_mj, max_gbitops)
    if samples < 1 or points < 2:
        raise ConfigError(f"--samples {samples}, --points {points}: expected at least 1 and 2")
    chosen_device = load_device(device)
    graph, params, _ = import_onnx(model)
    data = load_data(calib, graph, batch_size=batch_size)
    judge = load_data(evaluation, graph, batch_size=batch_size) if evaluation else None
    chosen_metric = metric_of(metric) if judge else None
    folded, exact = fold_bn(*cleanup(graph, params))
    if equalize:
        folded, exact = equalized(folded, exact)
    base = plan(folded, rules_of(rules, None, None, None), target=target)
    menu = [pair for pair in menu_of(chosen_device) if "float32" not in pair]
    open_plan = with_choices(base, folded, menu, target=target, exclude=tuple(exclude or ()))
    if not open_plan.choices:
        raise ConfigError(f"{model}: no layer is left to search; exclude fewer")
    work = workload(folded, exact)
    priced = prices(open_plan, work, chosen_device, tuple(asked), converting=converting)
    budget = list(asked.values())
    priced.check(budget)
    with progress_bar(json) as show:
        show("calibrating", 0, 1)
        apply = lower(folded)
        theta = calibrate(apply, exact, open_plan, data)
        if adaround:
            theta = round_choices(
                folded, exact, theta, open_plan, data,
                progress=lambda done, total, _: show("learning rounding", done, total),
                key=jax.random.key(key),
            )  # fmt: skip
        first = {n: v for n, v in next(iter(data)).items() if n in folded.inputs}
        problem = space(
            folded, exact, open_plan, theta, priced, _some(data, samples),
            divergence=divergence_of(apply(exact, {}, first)), relaxation=relaxation,
            controller=_CONTROLLERS[multiplier],
        )  # fmt: skip
        found, budgets, fronts = _found(problem, budget, points if pareto else 0, steps, show, key)
        frozen_params, encodings = freeze(folded, found.params, bind(found.theta, found.plan))
        frozen = Frozen(folded, exact, frozen_params, encodings)
        rows = layer_costs(work, encodings, chosen_device)
        total = sum(row.latency_s for row in rows) + float(chosen_device.graph_s)
        layers = [{**vars(row), "share": row.latency_s / total} for row in rows]
        document: dict[str, Any] = {
            "model": str(model),
            "device": chosen_device.name,
            "encodings": len(encodings),
            "budget": asked,
            "cost": found.cost,
            "max_latency_s": asked.get("latency_s"),
            "latency_s": found.cost.get("latency_s", total),
            "loss": found.loss,
            "gap": found.certificate.gap,
            "allocation": allocation(problem, found),
            "certificate": certificate(problem, found, budget),
            "front": front_points(problem, budgets, fronts) if pareto else [],
            "layers": layers,
        }
        if judge and chosen_metric:
            show("evaluating", 0, 1)
            document["metric"] = figures(frozen, (graph, params), judge, chosen_metric)
        if out is not None:
            show("writing", 0, 1)
            texts = _texts(document, found)
            document |= write_model(out, frozen, version=encodings_version, texts=texts)
    title = f"{graph.name} on {chosen_device.name}: {_spent(document)}"
    tables = [layer_table(layers, title), *_front_table(document), *judged_table(document)]
    emit(document, tables, json)


def _budgets(
    latency_ms: Budget, size_mb: Budget, energy_mj: Budget, gbitops: Budget
) -> dict[str, float]:
    """Kind of cost -> its budget in seconds, bytes, joules, operations."""
    given = dict(zip(UNITS, (latency_ms, size_mb, energy_mj, gbitops), strict=True))
    found = {kind: value / UNITS[kind][0] for kind, value in given.items() if value is not None}
    if not found:
        raise ConfigError(
            "no budget is given: --max-latency-ms, --max-size-mb, --max-energy-mj or --max-gbitops"
        )
    return found


def _found(
    problem: Space, budget: list[float], points: int, steps: int, show: Report, key: int
) -> tuple[Found, list[list[float]], list[Found]]:
    """What holds within the budget; and the front's budgets, from the widest, with their plans."""
    if not points:
        found = searched(problem, budget, steps=steps, progress=show, key=jax.random.key(key))
        return found, [], []
    book = Ledger(problem, problem.params, problem.theta)
    loss, room = book.sensitivities(show), problem.prices.check(budget)
    firsts = joint_budgets(loss, problem.prices.table, room, points) + problem.prices.constant[0]
    if problem.prices.couplings:  # a plan that exists: the cheapest options, conversions included
        cheapest = problem.prices.table[0].argmin(1)
        firsts = np.maximum(firsts, problem.prices.cost(cheapest)[0])
    # a hair above the ends, which sums in another order may miss
    budgets = [[float(first) * (1 + 1e-9), *budget[1:]] for first in firsts]
    budgets = sorted([*budgets, budget], key=lambda b: -b[0])
    fronts = sweep(
        problem, budgets, steps=steps, ledger=book, progress=show, key=jax.random.key(key)
    )
    return fronts[budgets.index(budget)], budgets, fronts


def _some(batches: Any, count: int) -> list[dict[str, np.ndarray]]:
    """The first `count` samples of all, in their batches."""
    kept: list[dict[str, np.ndarray]] = []
    for batch in batches:
        size = len(next(iter(batch.values())))
        kept.append({name: value[:count] for name, value in batch.items()})
        count -= size
        if count <= 0:
            break
    return kept


def _texts(document: Mapping[str, Any], found: Found) -> dict[str, str]:
    """The files beside the model: the plan, the certificate, the front."""
    proof = {**document["certificate"], "allocation": document["allocation"]}
    texts = {
        "plan.toml": rules_text(plan_rules(found.plan)),
        "certificate.json": jsonlib.dumps(proof, indent=1),
    }
    if front := document["front"]:
        chosen = next(i for i, p in enumerate(front) if p["budget"] == document["budget"])
        title = f"{document['model']} on {document['device']}"
        texts |= {
            "front.json": jsonlib.dumps(front, indent=1),
            "front.csv": front_csv(front),
            "front.svg": front_svg(front, title, chosen),
        }
    return texts


def _spent(document: Mapping[str, Any]) -> str:
    parts = []
    for kind, limit in document["budget"].items():
        factor, unit = UNITS[kind]
        parts.append(
            f"{document['cost'][kind] * factor:.4g} of at most {limit * factor:.4g} {unit}"
        )
    return ", ".join(parts)


def _front_table(document: Mapping[str, Any]) -> list[Any]:
    if not document["front"]:
        return []
    kinds = list(document["budget"])
    columns = {"limit": f"budget, {UNITS[kinds[0]][1]}"}
    columns |= {kind: f"{kind.split('_')[0]}, {UNITS[kind][1]}" for kind in kinds}
    columns |= {"loss": "loss", "gap": "gap of the tables"}
    rows = [
        {
            "limit": f"{point['budget'][kinds[0]] * UNITS[kinds[0]][0]:.4g}",
            **{k: f"{point['cost'][k] * UNITS[k][0]:.4g}" for k in kinds},
            "loss": f"{point['loss']:.4g}",
            "gap": f"{point['gap']:.2g}",
        }
        for point in document["front"]
    ]
    return [table_of("front", columns, rows)]
