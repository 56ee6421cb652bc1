"""`jqnt compare`: float, simulation, integers and a device, tensor by tensor."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jqnt.cli.console import emit
from jqnt.cli.frozen_model import frozen_model
from jqnt.cli.options import ArithmeticName, AsJson, BatchSize, EncodingsFile, FrozenPath
from jqnt.cli.results import write_model, written
from jqnt.compare import Emulation, Row, clipped_share, first_to_part
from jqnt.compare import compare as compared
from jqnt.data import load_data
from jqnt.device_outputs import read_device_outputs
from jqnt.errors import ConfigError
from jqnt.frozen import check_out
from jqnt.learn.feedback import tune_to_device
from jqnt.learn.quality import Quality
from jqnt.report import progress_bar, table_of
from jqnt.report.parting import parting_figure
from jqnt.report.roofline import save_figure
from jqnt.steps import Steps

__all__ = ["compare"]

_TUNED = {
    "tensor": "tensor",
    "weight": "weight",
    "before": "RMS before",
    "after": "after",
    "kept": "kept",
}

_UNLIKE = 0.001
"""A share of input values outside the calibrated range that is worth a warning."""


def compare(
    model: FrozenPath,
    data: Annotated[str, typer.Option(help="an .npz file or module:function", show_default=False)],
    encodings: EncodingsFile = None,
    arithmetic: ArithmeticName = "onnxruntime",
    unmatched: Annotated[
        Literal["skip", "error", "float"],
        typer.Option(
            help="nodes without an integer kernel: no integers at all, an error, or float"
        ),
    ] = "skip",
    device_outputs: Annotated[
        Path | None, typer.Option(help="the folder of qnn-net-run: Result_0, Result_1, ...")
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(
            help="a folder for the model with gains and biases fitted to --device-outputs"
        ),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(help="a tensor to compare (repeatable); by default all that are encoded"),
    ] = None,
    min_cosine: Annotated[float, typer.Option(help="mark tensors below this cosine")] = 0.995,
    min_sqnr_db: Annotated[float, typer.Option(help="mark tensors below this SQNR")] = 25.0,
    max_relative_error: Annotated[
        float, typer.Option(help="mark tensors whose integers are off by more of their range")
    ] = 0.02,
    plot: Annotated[
        Path | None, typer.Option(help="a file for the plot (.svg, .png, .pdf)")
    ] = None,
    batches: Annotated[int, typer.Option(help="batches to compare on, at most")] = 4,
    batch_size: BatchSize = 64,
    json: AsJson = False,
) -> None:
    """Compare a quantized model layer by layer: float, simulation, integers, device."""
    if tune is not None:
        if device_outputs is None:
            raise ConfigError("--tune fits the model to --device-outputs; give their folder too")
        check_out(tune)
    frozen = frozen_model(model, encodings)
    found = load_data(data, frozen.graph, batch_size=batch_size)
    kept = [batch for batch, _ in zip(found, range(batches), strict=False)]
    device = None
    if device_outputs is not None:
        device = read_device_outputs(device_outputs, frozen.graph.tensors, frozen.encodings)
        tensor = list(dict.fromkeys([*(tensor or _encoded(frozen)), *device]))
    wanted = None
    if unmatched != "skip" or arithmetic != "onnxruntime":
        wanted = Emulation(arithmetic, "float" if unmatched == "float" else "error")
    with progress_bar(json) as show:
        show("comparing", 0, 1)
        rows = compared(
            frozen.graph,
            frozen.reference,
            frozen.params,
            frozen.encodings,
            kept,
            tensors=tensor,
            emulation=wanted,
            device=device,
            steps=True,
        )
        outside = clipped_share(frozen.graph, frozen.encodings, kept)
    plain = [_plain(row, min_cosine, min_sqnr_db, max_relative_error) for row in rows]
    parts = first_to_part(rows)
    document: dict[str, Any] = {
        "model": str(model),
        "arithmetic": arithmetic,
        "tensors": plain,
        "first_to_part": parts,
        "inputs_outside_range": outside,
    }
    tables: list[Any] = [table_of(str(model), _columns(plain), plain)]
    if any(row.steps is not None for row in rows):
        tables.append(
            f"simulation and {arithmetic} integers part first at {parts!r}"
            if parts
            else f"simulation and {arithmetic} integers are equal in every code"
        )
    for name, share in outside.items():
        if share > _UNLIKE:
            tables.append(
                f"warning: {100 * share:.2g} % of input {name!r} lies outside the calibrated "
                f"range: these data are unlike the calibration data"
            )
    if tune is not None and device is not None:
        params, changed, layers = tune_to_device(
            frozen.graph, frozen.params, frozen.encodings, kept, device
        )
        files = write_model(tune, replace(frozen, params=params, encodings=changed))
        document["tuned"] = [asdict(layer) for layer in layers]
        document |= files
        tables.append(table_of("fitted to the device", _TUNED, document["tuned"]))
        tables += written(document)
    if plot is not None:
        save_figure(parting_figure(plain, arithmetic), plot)
        tables.append(f"wrote {plot}")
    emit(document, tables, json)


def _encoded(frozen: Any) -> list[str]:
    outputs = [t for node in frozen.graph.nodes for t in node.outputs if t in frozen.encodings]
    return [*outputs, *frozen.graph.outputs]


def _columns(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The headings of what there is."""
    columns = {
        "tensor": "tensor",
        "op": "made by",
        "format": "format",
        "sqnr_db": "SQNR dB",
        "cosine": "cosine",
        "integer_sqnr_db": "integers: SQNR dB",
        "integer_cosine": "cosine",
        "off_by_one_percent": "% off by 1+",
        "off_by_two_percent": "by 2+",
        "most_codes": "most",
        "relative_error": "relative",
        "device_sqnr_db": "device: SQNR dB",
        "device_off_by_one_percent": "% off by 1+",
    }
    kept = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
    return {**kept, "mark": ""}


def _plain(row: Row, min_cosine: float, min_sqnr_db: float, relative: float) -> dict[str, Any]:
    low = row.simulation.cosine < min_cosine or row.simulation.sqnr_db < min_sqnr_db
    off = row.steps is not None and row.steps.relative > relative
    marks = [*(["sensitive"] if low else []), *(["integers depart"] if off else [])]
    return {
        "tensor": row.tensor,
        "node": row.node,
        "op": row.op,
        "format": row.format,
        **_figures(row.simulation, ""),
        **_figures(row.integers, "integer_"),
        **_steps(row.steps, ""),
        **_figures(row.device, "device_"),
        **_steps(row.device_steps, "device_"),
        "mark": ", ".join(marks),
    }


def _figures(quality: Quality | None, prefix: str) -> dict[str, float | None]:
    """Null for what is not there, and for the SQNR of what does not differ at all."""
    if quality is None:
        return {f"{prefix}sqnr_db": None, f"{prefix}cosine": None}
    sqnr = quality.sqnr_db if math.isfinite(quality.sqnr_db) else None
    return {f"{prefix}sqnr_db": sqnr, f"{prefix}cosine": quality.cosine}


def _steps(steps: Steps | None, prefix: str) -> dict[str, float | int | None]:
    return {
        f"{prefix}off_by_one_percent": None if steps is None else 100 * steps.one,
        f"{prefix}off_by_two_percent": None if steps is None else 100 * steps.two,
        f"{prefix}most_codes": None if steps is None else steps.most,
        f"{prefix}relative_error": None if steps is None else steps.relative,
    }
