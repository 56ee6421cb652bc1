"""`jqnt emulate`: the integers of a backend, bit by bit, against the float simulation."""

from typing import Annotated, Literal

import typer

from jqnt.cli.console import emit
from jqnt.cli.frozen_model import frozen_model
from jqnt.cli.judge import figures, judged_table
from jqnt.cli.loading import metric_of
from jqnt.cli.options import (
    ArithmeticName,
    AsJson,
    BatchSize,
    EncodingsFile,
    Evaluation,
    FrozenPath,
    MetricName,
)
from jqnt.data import load_data
from jqnt.report import progress_bar

__all__ = ["emulate"]


def emulate(
    model: FrozenPath,
    evaluation: Evaluation,
    encodings: EncodingsFile = None,
    arithmetic: ArithmeticName = "onnxruntime",
    metric: MetricName = "top1",
    unmatched: Annotated[
        Literal["error", "float"],
        typer.Option(help="what to do with nodes that have no integer kernel"),
    ] = "error",
    batch_size: BatchSize = 64,
    json: AsJson = False,
) -> None:
    """Run a quantized model on integers; compare its metric with the float simulation's."""
    frozen = frozen_model(model, encodings)
    judge = load_data(evaluation, frozen.graph, batch_size=batch_size)
    chosen = metric_of(metric)
    with progress_bar(json) as show:
        show("evaluating", 0, 1)
        found = figures(
            frozen,
            (frozen.graph, frozen.reference),
            judge,
            chosen,
            unmatched=unmatched,
            arithmetic=arithmetic,
        )
    document = {"model": str(model), "arithmetic": arithmetic, "metric": found}
    emit(document, judged_table(document), json)
