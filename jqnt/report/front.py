"""A front of allocations as CSV and as a plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jqnt.learn.prices import UNITS

__all__ = ["front_csv", "front_figure", "front_svg"]

Points = Sequence[Mapping[str, Any]]


def front_csv(points: Points) -> str:
    """One line a budget: budgets and costs in the units of people, loss, bound, gap."""
    text = io.StringIO()
    kinds = list(points[0]["cost"]) if points else []
    names = [f"{kind.split('_')[0]}_{UNITS[kind][1]}" for kind in kinds]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*(f"budget_{n}" for n in names), *names, "loss", "table_dual_bound", "table_gap",
         "table_exact", "additivity", "dominated"]
    )  # fmt: skip
    for point in points:
        limits = [point["budget"][k] * UNITS[k][0] for k in kinds]
        spent = [point["cost"][k] * UNITS[k][0] for k in kinds]
        rest = [point[k] for k in ("loss", "dual_bound", "gap", "exact", "additivity", "dominated")]
        writer.writerow([*limits, *spent, *rest])
    return text.getvalue()


def front_figure(points: Points, title: str = "", chosen: int | None = None) -> Figure:
    """The loss of each plan above its first cost; rings are dominated, `chosen` is filled red."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    kind = next(iter(points[0]["cost"])) if points else "latency_s"
    factor, unit = UNITS[kind]
    order = sorted(points, key=lambda p: p["cost"][kind])
    kept = [p for p in order if not p["dominated"]]
    axes.step(
        [p["cost"][kind] * factor for p in kept], [p["loss"] for p in kept],
        where="post", color="#2f5fd0", linewidth=1.2,
    )  # fmt: skip
    for point in order:
        face = "none" if point["dominated"] else "#2f5fd0"
        axes.plot(
            point["cost"][kind] * factor, point["loss"], marker="o", color="#2f5fd0",
            markerfacecolor=face, linestyle="none",
        )  # fmt: skip
    if chosen is not None:
        point = points[chosen]
        axes.plot(point["cost"][kind] * factor, point["loss"], "o", color="#c8423f", markersize=9)
    if kept and min(p["loss"] for p in kept) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{kind.split('_')[0]}, {unit}")
    axes.set_ylabel("loss on the search data")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def front_svg(points: Points, title: str = "", chosen: int | None = None) -> str:
    """`front_figure` as an SVG file's text."""
    buffer = io.StringIO()
    front_figure(points, title, chosen).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
