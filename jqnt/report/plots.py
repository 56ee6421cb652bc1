"""The report's plots, as SVG text to stand in the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

__all__ = ["bits_plot", "latency_plot", "nearness_plot", "staircase_plot"]

_INK, _MUTED, _GRID = "#1c2430", "#6b7686", "#e6e9ee"
_BLUE, _TEAL, _AMBER, _RED, _GREY = "#2f5fd0", "#12908e", "#d98a1f", "#c8423f", "#b9c1cc"
_BOUND = {"compute": _BLUE, "memory": _AMBER, "dispatch": _GREY, "cpu": _RED}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jqnt",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
}


def staircase_plot(document: Mapping[str, Any]) -> str:
    """The metric of each step above its latency, with target and budget as lines."""
    steps, metric = document["steps"], document["metric"]
    names = [step["name"] for step in steps]
    x = np.arange(len(steps))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        sim = _numbers(step["metric_float_sim"] for step in steps)
        whole = _numbers(step["metric_integer"] for step in steps)
        above.plot(x, sim, color=_BLUE, lw=1.5, marker="o", ms=6, label="float simulation")
        above.plot(x, whole, color=_TEAL, lw=0, marker="s", ms=9, mfc="none", mew=1.6,
                   label="integer emulation")  # fmt: skip
        sign = 1 if metric["more_is_better"] else -1
        _line(above, sim[0] - sign * document["target"]["max_drop"], "target")
        above.set_title(f"{metric['name']} {metric['unit']}".strip())
        above.margins(y=0.25)
        above.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
        latency = 1e3 * _numbers(step["latency_s"] for step in steps)
        colors = [_TEAL if step["fits"] else _GREY for step in steps]
        below.bar(x, np.nan_to_num(latency), width=0.55, color=colors)
        for i, value in enumerate(latency):
            label = f"{value:.3g}" if np.isfinite(value) else "not on the device"
            color = "white" if np.isfinite(value) else _MUTED
            below.annotate(label, (i, 0), xytext=(0, 5), textcoords="offset points", ha="center",
                           fontsize=8, color=color)  # fmt: skip
        if document["target"]["max_latency_s"] is not None:
            _line(below, 1e3 * document["target"]["max_latency_s"], "budget")
        below.set_title("predicted latency, ms")
        below.margins(y=0.3)
        below.set_xticks(x, [_wrapped(name) for name in names])
        for axes in (above, below):
            axes.grid(axis="y")
            axes.tick_params(length=0)
        return _svg(figure)


def bits_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Bits of each layer's weights and output."""
    rows = [layer for layer in layers if layer["weight_bits"] or layer["activation_bits"]]
    with mpl.rc_context(_STYLE):
        figure, axes = _wide(len(rows), 2.6)
        x = np.arange(len(rows))
        weights = _numbers(layer["weight_bits"] for layer in rows)
        outputs = _numbers(layer["activation_bits"] for layer in rows)
        axes.bar(x - 0.19, np.nan_to_num(weights), 0.36, color=_BLUE, label="weights")
        axes.bar(x + 0.19, np.nan_to_num(outputs), 0.36, color=_GREY, label="output")
        for i, value in enumerate(weights):
            if np.isfinite(value):
                axes.annotate(f"{value:.0f}", (i - 0.19, value), xytext=(0, 1), fontsize=8,
                              textcoords="offset points", ha="center", color=_BLUE)  # fmt: skip
        axes.set_title("bits")
        axes.set_ylim(0, max(9.5, 1.2 * np.nanmax([*weights, *outputs, 8])))
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.22))
        _layers(axes, rows)
        return _svg(figure)


def nearness_plot(tensors: Sequence[Mapping[str, Any]]) -> str:
    """SQNR and 1 - cosine of each tensor against the float network, and of the integers."""
    rows = [{**row, "name": row["tensor"]} for row in tensors if row["simulation"]]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_size(len(rows), 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        x = np.arange(len(rows))
        sim = _numbers(row["simulation"]["sqnr_db"] for row in rows)
        whole = _numbers((row["integers"] or {}).get("sqnr_db") for row in rows)
        above.plot(x, sim, color=_BLUE, marker="o", ms=4, lw=1.2, label="simulation against float")
        above.plot(x, whole, color=_TEAL, marker="s", ms=4, lw=1.2, mfc="none",
                   label="integers against simulation")  # fmt: skip
        _line(above, 30.0, "30 dB")
        above.set_title("SQNR, dB")
        above.margins(y=0.2)
        above.legend(frameon=False, fontsize=8, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.2))
        angle = 1 - _numbers(row["simulation"]["cosine"] for row in rows)
        below.semilogy(x, np.maximum(angle, 1e-8), color=_BLUE, marker="o", ms=4, lw=1.2)
        _line(below, 0.005, "cosine 0.995")
        below.invert_yaxis()
        below.set_title("1 - cosine against float (up is better)")
        for axes in (above, below):
            axes.grid(axis="y")
            axes.tick_params(length=0)
        _layers(below, rows)
        return _svg(figure)


def latency_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Latency of each layer, colored by what bounds it, with its compute and memory time."""
    with mpl.rc_context(_STYLE):
        figure, axes = _wide(len(layers), 3.0)
        x = np.arange(len(layers))
        colors = [_BOUND[layer["bottleneck"]] for layer in layers]
        axes.bar(x, [1e6 * layer["latency_s"] for layer in layers], 0.62, color=colors)
        for key, marker in (("compute_s", "_"), ("memory_s", "x")):
            axes.plot(x, [1e6 * layer[key] for layer in layers], lw=0, marker=marker, color=_INK,
                      ms=9 if marker == "_" else 5, mew=1.4)  # fmt: skip
        axes.set_title("latency, us, by bottleneck (bar: compute time, cross: memory time)")
        seen = [k for k in _BOUND if any(layer["bottleneck"] == k for layer in layers)]
        handles = [Patch(color=_BOUND[key], label=key) for key in seen]
        axes.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="upper right",
                    bbox_to_anchor=(1, 1.18))  # fmt: skip
        _layers(axes, layers)
        return _svg(figure)


def _size(count: int, height: float) -> tuple[float, float]:
    return min(max(8.6, 0.16 * count), 30.0), height


def _wide(count: int, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_size(count, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    return figure, axes


def _layers(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Names below, as many as can be read."""
    step = max(1, len(rows) // 60)
    shown = range(0, len(rows), step)
    names = [_short(rows[i]["name"]) for i in shown]
    axes.set_xticks(shown, names, rotation=40, ha="right", fontsize=8, rotation_mode="anchor")
    axes.set_xlim(-0.7, len(rows) - 0.3)


def _short(name: str) -> str:
    return name if len(name) <= 22 else "..." + name[-20:]


def _wrapped(name: str) -> str:
    """A line break before "+", and at the first space of a long name."""
    return re.sub(r"\s*\+ ", "\n+ ", name).strip() if len(name) > 12 else name


def _line(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color=_RED, lw=1, ls=(0, (4, 3)))
    axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                  textcoords="offset points", color=_RED, fontsize=8)  # fmt: skip


def _numbers(values: Any) -> np.ndarray:
    return np.asarray([np.nan if v is None else v for v in values], np.float64)


def _svg(figure: Figure) -> str:
    """The <svg> element alone; the drawing's size follows the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest
