"""`jqnt export`: a quantized model as files for the tools that deploy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jqnt.cli.console import emit
from jqnt.cli.exports import ALIASES, FORMATS, Wishes
from jqnt.cli.frozen_model import frozen_model
from jqnt.cli.options import AsJson, EncodingsFile, EncodingsVersion, FrozenPath
from jqnt.cli.results import write_files
from jqnt.data import load_data
from jqnt.errors import ConfigError, nearest
from jqnt.frozen import Frozen, check_out
from jqnt.interop.qnn import HtpOptions

__all__ = ["export"]


def export(
    model: FrozenPath,
    to: Annotated[
        list[str],
        typer.Option(help=f"one of {', '.join(FORMATS)} (repeatable)", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="folder for the files", show_default=False)],
    encodings: EncodingsFile = None,
    encodings_version: EncodingsVersion = "1.0.0",
    batch: Annotated[int, typer.Option(help="tflite: the batch that the file is made for")] = 1,
    data: Annotated[
        str | None,
        typer.Option(help="qnn: raw inputs and input_list.txt from these data (.npz)"),
    ] = None,
    samples: Annotated[int, typer.Option(help="qnn: how many samples of them")] = 8,
    vtcm_mb: Annotated[int, typer.Option(help="qnn: HTP memory in MB, 0 for all")] = 8,
    json: AsJson = False,
) -> None:
    """Write a quantized model as ONNX, or for AIMET, QNN, AMCT, ncnn, MNN or TFLite."""
    names = [ALIASES.get(name, name) for name in to]
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"no export format {name!r}{nearest(name, [*FORMATS, *ALIASES])}")
    if batch < 1:
        raise ConfigError(f"--batch is {batch}; a batch holds at least one sample")
    check_out(out)
    frozen = frozen_model(model, encodings)
    wishes = Wishes(encodings_version, batch, HtpOptions(vtcm_mb), _samples(frozen, data, samples))
    files = write_files(out, frozen, names, wishes)
    document = {"model": str(model), "files": files}
    emit(document, ["\n".join(f"wrote {file}" for file in files)], json)


def _samples(frozen: Frozen, data: str | None, count: int) -> list[dict[str, Any]]:
    if data is None:
        return []
    batches = load_data(data, frozen.graph, batch_size=1)
    kept = [batch for batch, _ in zip(batches, range(count), strict=False)]
    return [{name: batch[name] for name in frozen.graph.inputs} for batch in kept]
