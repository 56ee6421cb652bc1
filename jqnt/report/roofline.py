"""The roofline of a device with a plan's layers on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jqnt.errors import ConfigError
from jqnt.npu import Device
from jqnt.npu.layers import LayerCost

__all__ = ["roofline_figure", "save_figure"]

_COLOURS = {"compute": "#1b6ca8", "memory": "#c2541b", "dispatch": "#777777", "cpu": "#a31b3c"}


def roofline_figure(layers: Sequence[LayerCost], device: Device) -> Figure:
    """Reached rate against intensity, one dot a layer (area by share of time), under the roofs.

    Layers without products or without traffic have no place on it.
    """
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.subplots()
    shown = [r for r in layers if r.macs and r.traffic_bytes and r.latency_s]
    x = np.array([r.intensity for r in shown] or [1.0])
    bandwidth = float(device.dram_bytes_per_s) * float(device.dram_efficiency)
    span = np.geomspace(min(x.min(), 1.0) / 2, max(x.max(), 1e3) * 2, 100)
    for pair in dict.fromkeys(r.pair for r in layers):
        rate = float(device.macs_per_s[pair])
        axes.plot(span, np.minimum(rate, span * bandwidth) / 1e12, label=pair, linewidth=1)
    total = sum(r.latency_s for r in layers) or 1.0
    for kind, colour in _COLOURS.items():
        own = [r for r in shown if r.bottleneck == kind]
        if own:
            axes.scatter(
                [r.intensity for r in own],
                [r.macs / r.latency_s / 1e12 for r in own],
                s=[10 + 2000 * r.latency_s / total for r in own],
                color=colour, alpha=0.6, label=f"bound by {kind}",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("multiply-accumulates per byte of DRAM traffic")
    axes.set_ylabel("10¹² multiply-accumulates per second")
    axes.set_title(device.name)
    axes.legend(fontsize="small")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the path's suffix; ConfigError if there is none such."""
    try:
        figure.savefig(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot write a plot there ({error})") from None
