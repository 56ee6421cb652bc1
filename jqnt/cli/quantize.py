"""`jqnt quantize`: post-training quantization, with equalization and learned rounding on demand."""

from typing import Annotated, Any, Literal

import jax
import typer

from jqnt.cli.console import emit
from jqnt.cli.judge import figures, judged_table
from jqnt.cli.loading import metric_of, rules_of
from jqnt.cli.options import (
    Activations,
    AsJson,
    BatchSize,
    Calib,
    EncodingsVersion,
    Key,
    MetricName,
    Model,
    OptionalEvaluation,
    Out,
    RulesFile,
    Scales,
    Target,
    Weights,
)
from jqnt.cli.results import write_model
from jqnt.data import load_data
from jqnt.freeze import freeze
from jqnt.frozen import Frozen, check_out
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.adaround import adaround as learn_rounding
from jqnt.learn.calibrate import calibrate
from jqnt.observers import entropy, minmax, mse, percentile
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.report import progress_bar
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize as equalized
from jqnt.transforms.fold_bn import fold_bn

__all__ = ["quantize"]

_OBSERVERS = {"minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}


def quantize(
    model: Model,
    calib: Calib,
    evaluation: OptionalEvaluation = None,
    metric: MetricName = "top1",
    target: Target = "onnxruntime",
    weights: Weights = None,
    activations: Activations = None,
    scales: Scales = None,
    rules: RulesFile = None,
    observer: Annotated[
        Literal["minmax", "percentile", "mse", "entropy"],
        typer.Option(help="how the ranges of activations are found"),
    ] = "minmax",
    equalize: Annotated[
        bool, typer.Option("--equalize", help="make channel ranges of neighbours equal first")
    ] = False,
    adaround: Annotated[
        bool, typer.Option("--adaround", help="learn how each weight is rounded")
    ] = False,
    steps: Annotated[int, typer.Option(help="optimization steps per layer of --adaround")] = 500,
    encodings_version: EncodingsVersion = "1.0.0",
    batch_size: BatchSize = 64,
    key: Key = 0,
    out: Out = None,
    json: AsJson = False,
) -> None:
    """Quantize a model after training; write it as QDQ ONNX and encodings."""
    if out is not None:
        check_out(out)
    graph, params, _ = import_onnx(model)
    data = load_data(calib, graph, batch_size=batch_size)
    judge = load_data(evaluation, graph, batch_size=batch_size) if evaluation else None
    chosen = metric_of(metric) if judge else None
    folded, exact = fold_bn(*cleanup(graph, params))
    if equalize:
        folded, exact = equalized(folded, exact)
    laid = plan(folded, rules_of(rules, weights, activations, scales), target=target)
    with progress_bar(json) as show:
        show("calibrating", 0, 1)
        theta = calibrate(lower(folded), exact, laid, data, observer=_OBSERVERS[observer]())
        if adaround:
            theta = learn_rounding(
                folded,
                exact,
                theta,
                laid,
                data,
                steps=steps,
                progress=lambda done, total, _: show("learning rounding", done, total),
                key=jax.random.key(key),
            )
        frozen_params, encodings = freeze(folded, exact, bind(theta, laid))
        frozen = Frozen(folded, exact, frozen_params, encodings)
        document: dict[str, Any] = {
            "model": str(model),
            "encodings": len(encodings),
            "out": str(out or ""),
        }
        if judge and chosen:
            show("evaluating", 0, 1)
            document["metric"] = figures(frozen, (graph, params), judge, chosen)
        if out is not None:
            show("writing", 0, 1)
            document |= write_model(out, frozen, version=encodings_version)
    emit(document, judged_table(document), json)
