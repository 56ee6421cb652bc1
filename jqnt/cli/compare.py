"""`jqnt compare`: float, simulation and integers, tensor by tensor."""

import math
from typing import Annotated, Any

import typer

from jqnt.cli.console import emit
from jqnt.cli.options import AsJson, BatchSize, FrozenPath
from jqnt.compare import Row, clipped_share
from jqnt.compare import compare as compared
from jqnt.data import load_data
from jqnt.errors import ConfigError
from jqnt.frozen import load_frozen
from jqnt.learn.quality import Quality
from jqnt.report import progress_bar, table_of

__all__ = ["compare"]

_UNLIKE = 0.001
"""A share of input values outside the calibrated range that is worth a warning."""


def compare(
    model: FrozenPath,
    data: Annotated[str, typer.Option(help="an .npz file or module:function", show_default=False)],
    tensor: Annotated[
        list[str] | None,
        typer.Option(help="a tensor to compare (repeatable); by default all that are encoded"),
    ] = None,
    min_cosine: Annotated[float, typer.Option(help="mark tensors below this cosine")] = 0.995,
    min_sqnr_db: Annotated[float, typer.Option(help="mark tensors below this SQNR")] = 25.0,
    batches: Annotated[int, typer.Option(help="batches to compare on, at most")] = 4,
    batch_size: BatchSize = 64,
    json: AsJson = False,
) -> None:
    """Compare a quantized model with its float model, layer by layer: SQNR and cosine."""
    frozen = load_frozen(model)
    if not frozen.encodings:
        raise ConfigError(f"{model} is a float model; quantize it first (jqnt quantize --out DIR)")
    found = load_data(data, frozen.graph, batch_size=batch_size)
    kept = [batch for batch, _ in zip(found, range(batches), strict=False)]
    with progress_bar(json) as show:
        show("comparing", 0, 1)
        rows = compared(
            frozen.graph,
            frozen.reference,
            frozen.params,
            frozen.encodings,
            kept,
            tensors=tensor,
        )
        outside = clipped_share(frozen.graph, frozen.encodings, kept)
    plain = [_plain(row, min_cosine, min_sqnr_db) for row in rows]
    document = {"model": str(model), "tensors": plain, "inputs_outside_range": outside}
    columns = {
        "tensor": "tensor",
        "op": "made by",
        "format": "format",
        "sqnr_db": "SQNR dB",
        "cosine": "cosine",
        "integer_sqnr_db": "integers: SQNR dB",
        "integer_cosine": "cosine",
        "mark": "",
    }
    tables: list[Any] = [table_of(str(model), columns, plain)]
    for name, share in outside.items():
        if share > _UNLIKE:
            tables.append(
                f"warning: {100 * share:.2g} % of input {name!r} lies outside the calibrated "
                f"range: these data are unlike the calibration data"
            )
    emit(document, tables, json)


def _plain(row: Row, min_cosine: float, min_sqnr_db: float) -> dict[str, Any]:
    low = row.simulation.cosine < min_cosine or row.simulation.sqnr_db < min_sqnr_db
    sim, whole = _figures(row.simulation), _figures(row.integers)
    return {
        "tensor": row.tensor,
        "node": row.node,
        "op": row.op,
        "format": row.format,
        **sim,
        **{f"integer_{key}": value for key, value in whole.items()},
        "mark": "sensitive" if low else "",
    }


def _figures(quality: Quality | None) -> dict[str, float | None]:
    """Null for what is not there, and for the SQNR of what does not differ at all."""
    if quality is None:
        return {"sqnr_db": None, "cosine": None}
    sqnr = quality.sqnr_db if math.isfinite(quality.sqnr_db) else None
    return {"sqnr_db": sqnr, "cosine": quality.cosine}
