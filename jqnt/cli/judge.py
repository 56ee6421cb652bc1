"""The metric of one model three times: in float, in the float simulation, on integers."""

from collections.abc import Mapping
from typing import Any

import jax

from jqnt import integer
from jqnt.cli.loading import evaluator_of
from jqnt.cli.results import written
from jqnt.data import Data
from jqnt.errors import UnsupportedError
from jqnt.frozen import Frozen
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.metrics import Metric
from jqnt.report import metric_figure, table_of
from jqnt.thaw import thaw
from jqnt.types import Params

__all__ = ["figures", "judged_table"]


def figures(
    model: Frozen,
    original: tuple[Graph, Params],
    data: Data,
    metric: Metric,
    *,
    unmatched: str | None = None,
    arithmetic: str = "onnxruntime",
) -> dict[str, Any]:
    """The metric in its own direction; "integer" is null, with the reason, where groups have no
    kernel, unless `unmatched` ("error" or "float") says what then, as in `integer.lower`."""
    graph, params = original
    evaluate = evaluator_of(metric, data, graph, params)
    exact = jax.jit(lower(graph))
    apply = jax.jit(lower(model.graph))
    qparams = thaw(model.encodings)
    found: dict[str, Any] = {
        "name": metric.name,
        "unit": metric.unit,
        "samples": data.samples,
        "float": metric.sign * evaluate(lambda x: exact(params, {}, x)),
        "float_simulation": metric.sign * evaluate(lambda x: apply(model.params, qparams, x)),
        "integer": None,
    }
    try:
        run = integer.lower(
            model.graph, model.params, model.encodings, arithmetic, unmatched or "error"
        )
    except UnsupportedError as error:
        if unmatched is not None:
            raise
        return found | {"integer_reason": str(error)}
    return found | {"integer": metric.sign * evaluate(run)}


def judged_table(document: Mapping[str, Any]) -> list[Any]:
    """The figures as a table, if there are any, and the files written."""
    tables: list[Any] = []
    if judged := document.get("metric"):
        names = {"float": "float", "float_simulation": "quantized, float simulation"}
        names |= {"integer": "quantized, on integers"}
        rows = [{"what": text, "v": metric_figure(judged[k], judged)} for k, text in names.items()]
        heading = f"{judged['name']} {judged['unit']}".strip()
        tables.append(table_of(str(document["model"]), {"what": "", "v": heading}, rows))
        if reason := judged.get("integer_reason"):
            tables.append(f"no integer emulation: {reason}")
    else:
        tables.append(f"{document['encodings']} tensors encoded; --eval judges the result")
    return [*tables, *written(document)]
