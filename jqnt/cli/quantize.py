"""`jqnt quantize`: post-training quantization, with equalization and learned rounding on demand."""

from collections.abc import Callable, Iterator
from pathlib import Path
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
    RoundingName,
    RulesFile,
    Scales,
    Target,
    Weights,
)
from jqnt.cli.results import write_model
from jqnt.data import Data, load_data
from jqnt.encodings import Encodings
from jqnt.freeze import freeze
from jqnt.frozen import Frozen, check_out
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.target_file import read_target
from jqnt.learn.calibrate import calibrate
from jqnt.learn.output_error import least_output_error
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.roundings import check_rounding, round_weights
from jqnt.learn.warnings import outside_range, too_few
from jqnt.observers import (
    Observer,
    deviations,
    entropy,
    exact_mse,
    lp_norm,
    minmax,
    moving_average,
    mse,
    percentile,
    sqnr,
)
from jqnt.placement import plan
from jqnt.plan import Plan, bind
from jqnt.report import progress_bar
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize as equalized
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Quantizer

__all__ = ["quantize"]

_OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": minmax,
    "average": moving_average,
    "deviations": deviations,
    "percentile": percentile,
    "mse": mse,
    "sqnr": sqnr,
    "lp": lp_norm,
    "entropy": entropy,
}
_WEIGHT_OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": minmax,
    "output": minmax,
    "mse": exact_mse,
    "sqnr": lambda: exact_mse(clip_weight=3.0),
}


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
        Literal["minmax", "average", "deviations", "percentile", "mse", "sqnr", "lp", "entropy"],
        typer.Option(help="how the ranges of activations are found"),
    ] = "minmax",
    weight_observer: Annotated[
        Literal["minmax", "mse", "sqnr", "output"],
        typer.Option(help="how those of weights are; output: the least error of the layer"),
    ] = "minmax",
    quantized_weights: Annotated[
        bool,
        typer.Option(
            "--quantized-weights", help="observe activations behind the weights' own rounding"
        ),
    ] = False,
    freeze_ranges: Annotated[
        Path | None,
        typer.Option(help="encodings (jqnt's JSON) whose tensors keep them", show_default=False),
    ] = None,
    equalize: Annotated[
        bool, typer.Option("--equalize", help="make channel ranges of neighbours equal first")
    ] = False,
    rounding: RoundingName = "nearest",
    steps: Annotated[
        int, typer.Option(help="optimization steps of --rounding, per layer or block")
    ] = 500,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="folder that keeps what --rounding has found, and from which it goes on after an "
            "interruption",
            show_default=False,
        ),
    ] = None,
    encodings_version: EncodingsVersion = "1.0.0",
    batch_size: BatchSize = 64,
    key: Key = 0,
    out: Out = None,
    json: AsJson = False,
) -> None:
    """Quantize a model after training; write it as QDQ ONNX and encodings."""
    if out is not None:
        check_out(out)
    check_rounding(rounding)
    graph, params, _ = import_onnx(model)
    data = load_data(calib, graph, batch_size=batch_size)
    judge = load_data(evaluation, graph, batch_size=batch_size) if evaluation else None
    chosen = metric_of(metric) if judge else None
    folded, exact = fold_bn(*cleanup(graph, params))
    if equalize:
        folded, exact = equalized(folded, exact)
    described = read_target(target, folded)
    own = rules_of(rules, weights, activations, scales)
    laid = plan(folded, (*own, *described.rules), target=described.target)
    warnings = [f"{target}, not honoured: {key}" for key in described.unhonoured]
    with progress_bar(json) as show:
        show("calibrating", 0, 1)
        theta = calibrate(
            lower(folded),
            exact,
            laid,
            data,
            observer=_OBSERVERS[observer](),
            weight_observer=_WEIGHT_OBSERVERS[weight_observer](),
            frozen=_frozen(freeze_ranges, laid),
            quantized_weights=quantized_weights,
        )
        warnings += [text] if (text := too_few(data.samples)) else []
        if weight_observer == "output":
            method = least_output_error()
            theta = reconstruct(
                folded, exact, theta, laid, data, method, key=jax.random.key(key)
            ).theta
        rounded = round_weights(
            folded,
            exact,
            theta,
            laid,
            list(data) if rounding != "nearest" else [],
            rounding,
            steps=steps,
            folder=resume,
            progress=lambda done, total, _: show("learning rounding", done, total),
            key=jax.random.key(key),
        )
        theta = rounded.theta
        frozen_params, encodings = freeze(folded, rounded.params, bind(theta, laid))
        frozen = Frozen(folded, exact, frozen_params, encodings)
        document: dict[str, Any] = {
            "model": str(model),
            "encodings": len(encodings),
            "out": str(out or ""),
            "warnings": warnings,
        }
        if judge and chosen:
            show("evaluating", 0, 1)
            document["metric"] = figures(frozen, (graph, params), judge, chosen)
            found = outside_range(
                lower(folded), rounded.params, bind(theta, laid), _inputs(judge, folded)
            )
            warnings += [str(row) for row in found]
        if out is not None:
            show("writing", 0, 1)
            document |= write_model(out, frozen, version=encodings_version)
    tables = [*judged_table(document), *(f"warning: {text}" for text in warnings)]
    emit(document, tables, json)


def _frozen(path: Path | None, laid: Plan) -> dict[str, Quantizer]:
    """The quantizers of a saved encodings file for the tensors that the plan gives one."""
    if path is None:
        return {}
    held = thaw(Encodings.load(path))
    followed = {*laid.tied, *laid.biases}
    return {name: quantizer for name, quantizer in held.items() if name not in followed}


def _inputs(data: Data, graph: Graph) -> Iterator[dict[str, Any]]:
    for batch in data:
        yield {name: batch[name] for name in graph.inputs}
