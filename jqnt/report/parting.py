"""Where simulation, integers and device part: shares of elements off by a code, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

__all__ = ["parting_figure"]


def parting_figure(rows: Sequence[Mapping[str, Any]], arithmetic: str) -> Figure:
    """SQNR against float above, shares off by one code and more below, tensors in order.

    `rows` are those of `jqnt compare --json`.
    """
    figure = Figure(figsize=(max(6.0, 0.28 * len(rows) + 2), 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    x = np.arange(len(rows))
    above.plot(x, _numbers(rows, "sqnr_db"), marker="o", ms=4, label="simulation against float")
    above.plot(
        x, _numbers(rows, "integer_sqnr_db"), marker="s", ms=4, label="integers against simulation"
    )
    above.set_ylabel("SQNR, dB")
    above.legend(fontsize="small")
    width = 0.4
    below.bar(x - width / 2, _numbers(rows, "off_by_one_percent"), width, label=f"{arithmetic}")
    if any(row.get("device_off_by_one_percent") is not None for row in rows):
        below.bar(
            x + width / 2,
            _numbers(rows, "device_off_by_one_percent"),
            width,
            label="device against integers",
        )
    below.set_ylabel("% of codes off by one and more")
    below.set_xticks(x, [row["tensor"] for row in rows], rotation=90, fontsize=7)
    below.legend(fontsize="small")
    return figure


def _numbers(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    values = [row.get(key) for row in rows]
    return np.asarray([np.nan if v is None else v for v in values], float)
