"""Tables for a terminal (and, since rich shows itself there, a notebook)."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = [
    "figure", "layer_table", "metric_figure", "profile_table", "staircase_table", "table_of",
]  # fmt: skip


def table_of(
    title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], caption: str = ""
) -> Table:
    """Rows under headings: `columns` maps a row's key to its heading. Numbers stand right."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for key, heading in columns.items():
        values = [row[key] for row in rows if row.get(key) is not None]
        number = bool(values) and all(_is_number(v) for v in values)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        style = "bold" if row.get("chosen") else ""
        table.add_row(*(_cell(row.get(key)) for key in columns), style=style)
    return table


def staircase_table(document: Mapping[str, Any]) -> Table:
    """The steps of a report: metrics, latency, size, time."""
    metric, target = document["metric"], document["target"]
    unit = f" {metric['unit']}" if metric["unit"] else ""
    rows = [
        {
            "name": step["name"],
            "sim": metric_figure(step["metric_float_sim"], metric),
            "int": metric_figure(step["metric_integer"], metric),
            "latency": None if step["latency_s"] is None else 1e3 * step["latency_s"],
            "size": step["size_bytes"] / 1024,
            "seconds": round(step["seconds"], 1),
            "meets": Text("meets", "green") if step["meets"] else _why_not(step, target),
            "chosen": step["chosen"],
        }
        for step in document["steps"]
    ]
    columns = {
        "name": "step",
        "sim": f"{metric['name']}{unit}",
        "int": "on integers",
        "latency": "latency ms",
        "size": "size KiB",
        "seconds": "seconds",
        "meets": "target",
    }
    budget = target["max_latency_s"]
    asked = "" if budget is None else f"at most {1e3 * budget:.4g} ms, "
    title = (
        f"{document['model']['name']} on {document['device']['name']}: {asked}"
        f"at most {target['max_drop']:g} below float"
    )
    verdict = "meets target and budget" if document["met"] else "the nearest to the target"
    return table_of(title, columns, rows, f"Chosen: {document['chosen']}, {verdict}.")


def layer_table(layers: Sequence[Mapping[str, Any]], title: str = "Layers") -> Table:
    """Layers in order of execution: formats, latency, what bounds them, nearness to float."""
    rows = [
        {
            **layer,
            "latency": 1e6 * layer["latency_s"],
            "share": None if layer.get("share") is None else 100 * layer["share"],
            "kib": layer["weight_bytes"] / 1024,
        }
        for layer in layers
    ]
    columns = {
        "name": "layer",
        "op": "operator",
        "pair": "formats",
        "latency": "us",
        "share": "%",
        "bottleneck": "bound by",
        "kib": "weights KiB",
    }
    if any("sqnr_db" in layer for layer in layers):
        columns |= {"sqnr_db": "SQNR dB", "cosine": "cosine"}
    return table_of(title, columns, rows)


def profile_table(layers: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Layers as given: time, what bounds them, their place on the roofline, use of the device."""
    rows = [
        {
            **layer,
            "latency": 1e6 * layer["latency_s"],
            "percent": 100 * layer["share"],
            "used": 100 * layer["utilization"],
            "held": 100 * layer["vtcm_use"],
            "intensity": layer["intensity"] if layer["macs"] else None,
            "ridge": layer["ridge"] if layer["macs"] else None,
        }
        for layer in layers
    ]
    columns = {
        "name": "layer",
        "op": "operator",
        "pair": "formats",
        "latency": "us",
        "percent": "%",
        "bottleneck": "bound by",
        "intensity": "MAC/byte",
        "ridge": "ridge",
        "used": "used %",
        "held": "on-chip %",
    }
    return table_of(title, columns, rows)


def figure(value: float) -> str:
    """Four digits, without an exponent where that is readable."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def metric_figure(value: float | None, metric: Mapping[str, Any]) -> str | None:
    """Percentages with two decimals, so that they stand below each other."""
    if value is None:
        return None
    return f"{value:.2f}" if metric["unit"] == "%" else figure(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.replace(".", "", 1).lstrip("-").isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return figure(value) if isinstance(value, float) else str(value)


def _why_not(step: Mapping[str, Any], target: Mapping[str, Any]) -> Text:
    if step["latency_s"] is None:
        return Text("not on the device", "dim")
    if not step["fits"]:
        return Text("too slow", "yellow")
    return Text(f"{step['drop']:.3g} below", "yellow")
