"""`jqnt recover`: the main job, from FP32 to what deploys, with the evidence."""

from pathlib import Path
from typing import Annotated

import jax
import typer

from jqnt.cli.console import emit
from jqnt.cli.loading import evaluator_of, metric_of, rules_of, sha256_of
from jqnt.cli.options import (
    AsJson,
    BatchSize,
    Calib,
    Device,
    EncodingsVersion,
    Evaluation,
    Key,
    MaxLatency,
    MetricName,
    Model,
    Target,
)
from jqnt.cli.results import write_model, written
from jqnt.data import load_data
from jqnt.frozen import Frozen, check_out
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.recover import recover as recovered
from jqnt.npu import device as load_device
from jqnt.report import Provenance, progress_bar, report, staircase_table
from jqnt.targets import load_target

__all__ = ["recover"]


def recover(
    model: Model,
    calib: Calib,
    evaluation: Evaluation,
    device: Device,
    max_drop: Annotated[
        float, typer.Option(help="points of the metric that may be lost against float")
    ],
    max_latency_ms: MaxLatency = None,
    metric: MetricName = "top1",
    target: Target = "onnxruntime",
    rules: Annotated[
        Path | None,
        typer.Option(
            help="the formats of the mixed-precision step, such as the plan.toml of jqnt search; "
            "searched by default",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="staircase; or amct, Huawei AMCT's loop: more batches, the worst layers left out "
            "one by one, other ranges and rounding, QAT"
        ),
    ] = "staircase",
    run_all: Annotated[
        bool, typer.Option("--all", help="run every step, whether or not an earlier one is enough")
    ] = False,
    encodings_version: EncodingsVersion = "1.0.0",
    batch_size: BatchSize = 64,
    key: Key = 0,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("out"),
    json: AsJson = False,
) -> None:
    """FP32, FP16, W8A8, equalization, AdaRound, mixed precision, QAT: stop when good enough.

    --strategy amct takes other steps, on calibration data in batches of --batch-size.
    """
    check_out(out)
    chosen_device, chosen_metric = load_device(device), metric_of(metric)
    load_target(target)
    graph, params, _ = import_onnx(model)
    data = load_data(calib, graph, batch_size=batch_size)
    judge = load_data(evaluation, graph, batch_size=batch_size)
    evaluate = evaluator_of(chosen_metric, judge, graph, params)
    settings = {
        "device": device,
        "max_latency_ms": max_latency_ms,
        "max_drop": max_drop,
        "metric": metric,
        "target": target,
        "rules": None if rules is None else str(rules),
        "strategy": strategy,
        "all": run_all,
        "batch_size": batch_size,
    }
    with progress_bar(json) as show:
        found = recovered(
            graph,
            params,
            list(data),
            evaluate,
            chosen_device,
            max_drop=max_drop,
            max_latency_s=None if max_latency_ms is None else max_latency_ms / 1e3,
            run_all=run_all,
            strategy=strategy,
            target=target,
            rules=rules_of(rules, None, None, None),
            progress=show,
            key=jax.random.key(key),
        )
        show("report", 0, 1)
        made = report(
            found,
            metric=chosen_metric,
            device=chosen_device,
            calib=data,
            evaluation=judge,
            provenance=Provenance(str(model), sha256_of(model), key, settings),
        )
        step = found.chosen
        frozen = Frozen(step.graph, step.reference, step.params, step.encodings)
        texts = {"report.json": made.json(), "report.html": made.html()}
        files = write_model(out, frozen, version=encodings_version, texts=texts)
    emit(made.document | files, [staircase_table(made.document), *written(files)], json)
