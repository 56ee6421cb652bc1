"""`jqnt export`: a quantized model as files for the tools that deploy."""

from pathlib import Path
from typing import Annotated

import typer

from jqnt.cli.console import emit
from jqnt.cli.options import AsJson, EncodingsVersion, FrozenPath
from jqnt.cli.results import FORMATS, write_files
from jqnt.errors import ConfigError, nearest
from jqnt.frozen import check_out, load_frozen

__all__ = ["export"]


def export(
    model: FrozenPath,
    to: Annotated[
        list[str],
        typer.Option(help=f"one of {', '.join(FORMATS)} (repeatable)", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="folder for the files", show_default=False)],
    encodings_version: EncodingsVersion = "1.0.0",
    json: AsJson = False,
) -> None:
    """Write a quantized model as QDQ or QOperator ONNX, or its encodings for AIMET and QNN."""
    for name in to:
        if name not in FORMATS:
            raise ConfigError(f"no export format {name!r}{nearest(name, FORMATS)}")
    check_out(out)
    frozen = load_frozen(model)
    if not frozen.encodings:
        raise ConfigError(f"{model} is a float model; quantize it first (jqnt quantize --out DIR)")
    files = write_files(out, frozen, to, version=encodings_version)
    document = {"model": str(model), "files": files}
    emit(document, ["\n".join(f"wrote {file}" for file in files)], json)
