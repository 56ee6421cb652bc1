"""`jqnt emulate`: the integers of a backend, bit by bit, against the float simulation."""

from typing import Annotated, Literal

import typer

from jqnt.cli.console import emit
from jqnt.cli.judge import figures, judged_table
from jqnt.cli.loading import metric_of
from jqnt.cli.options import AsJson, BatchSize, Evaluation, FrozenPath, MetricName
from jqnt.data import load_data
from jqnt.errors import ConfigError
from jqnt.frozen import load_frozen
from jqnt.report import progress_bar

__all__ = ["emulate"]


def emulate(
    model: FrozenPath,
    evaluation: Evaluation,
    metric: MetricName = "top1",
    unmatched: Annotated[
        Literal["error", "float"],
        typer.Option(help="what to do with nodes that have no integer kernel"),
    ] = "error",
    batch_size: BatchSize = 64,
    json: AsJson = False,
) -> None:
    """Run a quantized model on integers; compare its metric with the float simulation's."""
    frozen = load_frozen(model)
    if not frozen.encodings:
        raise ConfigError(f"{model} is a float model; quantize it first (jqnt quantize --out DIR)")
    judge = load_data(evaluation, frozen.graph, batch_size=batch_size)
    chosen = metric_of(metric)
    with progress_bar(json) as show:
        show("evaluating", 0, 1)
        found = figures(
            frozen, (frozen.graph, frozen.reference), judge, chosen, unmatched=unmatched
        )
    document = {"model": str(model), "metric": found}
    emit(document, judged_table(document), json)
