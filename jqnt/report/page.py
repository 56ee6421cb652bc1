"""The report's document as one HTML page that needs nothing else."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jqnt.report.plots import bits_plot, latency_plot, nearness_plot, staircase_plot
from jqnt.report.terminal import figure, metric_figure

__all__ = ["page"]


def page(document: Mapping[str, Any], *, whole: bool = True) -> str:
    """The page of a report's document; without `whole` a part to stand in another page.

    The drawings are SVG in the text, the style sheet too: no script, nothing fetched.
    """
    environment = Environment(
        loader=PackageLoader("jqnt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "metric": _metric}
    plots = {"staircase": staircase_plot(document)}
    if document["tensors"]:
        plots["nearness"] = nearness_plot(document["tensors"])
    if document["layers"]:
        plots["bits"] = bits_plot(document["layers"])
        plots["latency"] = latency_plot(document["layers"])
    template = environment.get_template("page.html.j2")
    return template.render(d=document, plots=plots, whole=whole)


def _figure(value: Any, factor: float = 1.0, unit: str = "") -> str:
    """A number times `factor` with its unit; a dash for what is not known."""
    return "–" if value is None else f"{figure(factor * value)}{unit}"  # noqa: RUF001


def _metric(value: Any, metric: Mapping[str, Any]) -> str:
    return metric_figure(value, metric) or "–"  # noqa: RUF001
