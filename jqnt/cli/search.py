"""`jqnt search`: bits layer by layer under a latency budget."""

from typing import Annotated, Any

import jax
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
from jqnt.learn.calibrate import calibrate
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.search import search as searched
from jqnt.learn.space import space
from jqnt.npu import device as load_device
from jqnt.npu import workload
from jqnt.npu.layers import layer_costs
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.report import layer_table, progress_bar
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize as equalized
from jqnt.transforms.fold_bn import fold_bn

__all__ = ["search"]


def search(
    model: Model,
    calib: Calib,
    device: Device,
    max_latency_ms: Annotated[float, typer.Option(help="latency budget in milliseconds")],
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
    steps: Annotated[int, typer.Option(help="optimization steps; 0 for tables only")] = 200,
    encodings_version: EncodingsVersion = "1.0.0",
    batch_size: BatchSize = 64,
    key: Key = 0,
    out: Out = None,
    json: AsJson = False,
) -> None:
    """Search the bits of each layer within a latency budget on a device."""
    if out is not None:
        check_out(out)
    chosen_device = load_device(device)
    graph, params, _ = import_onnx(model)
    data = load_data(calib, graph, batch_size=batch_size)
    judge = load_data(evaluation, graph, batch_size=batch_size) if evaluation else None
    chosen_metric = metric_of(metric) if judge else None
    folded, exact = fold_bn(*cleanup(graph, params))
    if equalize:
        folded, exact = equalized(folded, exact)
    base = plan(folded, rules_of(rules, None, None, None), target=target)
    menu = menu_of(chosen_device)
    open_plan = with_choices(base, folded, menu, target=target, exclude=tuple(exclude or ()))
    if not open_plan.choices:
        raise ConfigError(f"{model}: no layer is left to search; exclude fewer")
    work = workload(folded, exact)
    priced = prices(open_plan, work, chosen_device)
    priced.check([max_latency_ms / 1e3])
    with progress_bar(json) as show:
        show("calibrating", 0, 1)
        theta = calibrate(lower(folded), exact, open_plan, data)
        found = searched(
            space(folded, exact, open_plan, theta, priced, list(data)),
            [max_latency_ms / 1e3],
            steps=steps,
            progress=show,
            key=jax.random.key(key),
        )
        frozen_params, encodings = freeze(folded, found.params, bind(found.theta, found.plan))
        frozen = Frozen(folded, exact, frozen_params, encodings)
        total = found.cost["latency_s"]
        rows = layer_costs(work, encodings, chosen_device)
        layers = [{**vars(row), "share": row.latency_s / total} for row in rows]
        document: dict[str, Any] = {
            "model": str(model),
            "device": chosen_device.name,
            "encodings": len(encodings),
            "max_latency_s": max_latency_ms / 1e3,
            "latency_s": total,
            "loss": found.loss,
            "gap": found.certificate.gap,
            "layers": layers,
        }
        if judge and chosen_metric:
            show("evaluating", 0, 1)
            document["metric"] = figures(frozen, (graph, params), judge, chosen_metric)
        if out is not None:
            show("writing", 0, 1)
            document |= write_model(out, frozen, version=encodings_version)
    title = (
        f"{graph.name} on {chosen_device.name}: {1e3 * total:.4g} ms of at most "
        f"{max_latency_ms:.4g} ms"
    )
    emit(document, [layer_table(layers, title), *judged_table(document)], json)
