"""Tables of single layers with cycle estimates (Ethos-U, from Arm's Vela) -> workloads."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jqnt.errors import DataError
from jqnt.graph.ir import Graph, Node, TensorInfo
from jqnt.npu.workload import Workload, workload

__all__ = ["SweepRow", "layer_workload", "read_sweep"]

_SHAPE = ("ifm_h", "ifm_w", "ifm_c", "ofm_h", "ofm_w", "ofm_c", "kernel_h", "kernel_w", "stride")
_PAIRS = {0: "w8a8", 256: "w8a8", 16: "w4a8", 4: "w2a8"}


class SweepRow(NamedTuple):
    """One layer in one configuration: what it is, and its cycles in all and on the array."""

    layer: str
    op: str
    shape: tuple[int, ...]
    pair: str
    config: str
    cycles: float
    clock_hz: float


def read_sweep(path: str | Path) -> list[SweepRow]:
    """The rows of a sweep; weights of 256, 16, 4 levels count as 8, 4, 2 bits.

    Raises DataError for a missing file or column, or a cell that is no number.
    """
    path = Path(path)
    try:
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    needed = ("layer", "op", *_SHAPE, "w_levels", "config", "cycles_total", "core_clock_hz")
    missing = [name for name in needed if not table or name not in table[0]]
    if missing:
        raise DataError(f"{path}: no rows, or no column {', '.join(missing)}")
    rows = []
    for number, row in enumerate(table, start=2):
        try:
            shape = tuple(int(row[name]) for name in _SHAPE)
            pair = _PAIRS[int(row["w_levels"])]
            cycles, clock = float(row["cycles_total"]), float(row["core_clock_hz"])
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        rows.append(SweepRow(row["layer"], row["op"], shape, pair, row["config"], cycles, clock))
    return rows


def layer_workload(row: SweepRow) -> Workload:
    """The workload of a network that is this one layer; DataError for an unknown operator."""
    in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride = row.shape
    x, y = (1, in_c, in_h, in_w), (1, out_c, out_h, out_w)
    attrs = {"kernel_shape": (kernel_h, kernel_w), "strides": (stride, stride)}
    weights: dict[str, tuple[int, ...]] = {}
    if row.op in ("conv", "dwconv"):
        groups = in_c if row.op == "dwconv" else 1
        weights = {"w": (out_c, in_c // groups, kernel_h, kernel_w), "b": (out_c,)}
        node = Node("Conv", row.layer, ("x", "w", "b"), ("y",), {**attrs, "group": groups})
    elif row.op == "fc":
        x, y, weights = (1, in_c), (1, out_c), {"w": (in_c, out_c), "b": (out_c,)}
        node = Node("Gemm", row.layer, ("x", "w", "b"), ("y",))
    elif row.op == "add":
        node = Node("Add", row.layer, ("x", "x2"), ("y",))
    elif row.op == "avgpool":
        node = Node("AveragePool", row.layer, ("x",), ("y",), attrs)
    else:
        raise DataError(f"layer {row.layer!r}: unknown operator {row.op!r}")
    inputs = ("x", "x2") if row.op == "add" else ("x",)
    info = {name: TensorInfo(np.dtype(np.float32), x) for name in inputs}
    info["y"] = TensorInfo(np.dtype(np.float32), y)
    graph = Graph(row.layer, (node,), inputs, ("y",), tuple(weights), {}, info)
    params = {name: np.broadcast_to(np.float32(0), shape) for name, shape in weights.items()}
    return workload(graph, params)
