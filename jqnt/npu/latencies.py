"""Published tables of measured network latencies -> measurements and workloads."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jqnt.errors import DataError
from jqnt.graph.onnx_import import import_onnx
from jqnt.npu.fit_device import Measurement
from jqnt.npu.workload import Workload, workload

__all__ = ["PRECISIONS", "LatencyRow", "measurements_of", "read_graphs", "read_latencies"]

PRECISIONS = {"float": "float16", "w8a8": "w8a8", "w8a16": "w8a16", "w4a16": "w4a16"}
"""A table's word for a precision -> the name of the pair."""

_COLUMNS = ("model", "precision", "device", "latency_ms")


class LatencyRow(NamedTuple):
    """One row: a network measured on a device; `layers` is 0 where the table does not say."""

    model: str
    precision: str
    device: str
    latency_s: float
    layers: int


def read_latencies(
    path: str | Path, runtime: str = "qnn_dlc", without: Collection[str] = ()
) -> list[LatencyRow]:
    """The rows of a CSV of latencies that ran wholly on the NPU, of one runtime.

    Needs the columns model, precision, device and latency_ms; runtime, layers_total, layers_cpu,
    layers_gpu and primary_compute_unit are used where they exist. Devices in `without` are left
    out. Raises DataError for a missing file or column or a latency that is no positive number.
    """
    path = Path(path)
    try:
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    missing = [name for name in _COLUMNS if not table or name not in table[0]]
    if missing:
        raise DataError(f"{path}: no rows, or no column {', '.join(missing)}")
    rows = []
    for number, row in enumerate(table, start=2):
        if row.get("runtime", runtime) != runtime or row["device"] in without:
            continue
        elsewhere = [row.get(key) or "0" for key in ("layers_cpu", "layers_gpu")]
        if row.get("primary_compute_unit", "NPU") != "NPU" or elsewhere != ["0", "0"]:
            continue
        try:
            latency_s, layers = float(row["latency_ms"]) / 1e3, int(row.get("layers_total") or 0)
        except ValueError:
            raise DataError(f"{path}, line {number}: latency or layer count is no number") from None
        if not latency_s > 0:
            raise DataError(f"{path}, line {number}: latency {row['latency_ms']} ms")
        rows.append(LatencyRow(row["model"], row["precision"], row["device"], latency_s, layers))
    return rows


def read_graphs(folder: str | Path, models: Collection[str]) -> dict[str, Workload]:
    """Model name -> workload of `folder/<model>.onnx`, for those models that have a file."""
    folder = Path(folder)
    found = {}
    for model in sorted(models):
        path = folder / f"{model}.onnx"
        if path.is_file():
            graph, params, _ = import_onnx(path)
            found[model] = workload(graph, params)
    return found


def measurements_of(
    rows: Sequence[LatencyRow], models: Mapping[str, Workload]
) -> list[tuple[LatencyRow, Measurement]]:
    """The rows of known models and plain precisions, with the measurements that they are."""
    return [
        (row, Measurement(models[row.model], PRECISIONS[row.precision], row.latency_s, row.device))
        for row in rows
        if row.model in models and row.precision in PRECISIONS
    ]
