"""The files that a quantized model leaves in a folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from jqnt.errors import UnsupportedError
from jqnt.frozen import Frozen, replacing, save_frozen
from jqnt.interop.aimet import to_aimet
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.interop.onnx_qop import to_qoperator

__all__ = ["FORMATS", "write_files", "write_model", "written"]


def _qdq(model: Frozen, folder: Path, version: str) -> None:
    proto = to_qdq(model.graph, model.params, model.encodings)
    onnx.save(proto, folder / "model.qdq.onnx")


def _qoperator(model: Frozen, folder: Path, version: str) -> None:
    proto = to_qoperator(model.graph, model.params, model.encodings)
    onnx.save(proto, folder / "model.qop.onnx")


def _encodings(model: Frozen, folder: Path, version: str) -> None:
    document = to_aimet(model.graph, model.params, model.encodings, version=version)
    (folder / "encodings.json").write_text(json.dumps(document, indent=1))


FORMATS: Mapping[str, Callable[[Frozen, Path, str], None]] = {
    "qdq": _qdq,
    "encodings": _encodings,
    "qop": _qoperator,
}
"""Name on the command line -> what writes that format into a folder; the last argument is the
version of encodings.json."""


def write_files(
    out: Path, model: Frozen, formats: Sequence[str], *, version: str = "1.0.0"
) -> list[str]:
    """Writes the files of `formats` into the folder; all of them, or none. Gives the paths."""
    with replacing(out) as beside:
        for name in formats:
            FORMATS[name](model, beside, version)
        names = sorted(entry.name for entry in beside.iterdir())
    return [str(out / name) for name in names]


def write_model(
    out: Path, model: Frozen, *, version: str = "1.0.0", texts: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes model.qdq.onnx, encodings.json in `version`, frozen/ and `texts` by name.

    Gives {"files": paths, "refused": {format: reason}}: a format that cannot express the model is
    left out, so that hours of work are not lost on it. All else is there, or nothing.
    """
    refused: dict[str, str] = {}
    with replacing(out) as beside:
        save_frozen(beside, model)
        for name in ("qdq", "encodings"):
            try:
                FORMATS[name](model, beside, version)
            except UnsupportedError as error:
                refused[name] = str(error)
        for name, text in (texts or {}).items():
            (beside / name).write_text(text)
        names = sorted(entry.name for entry in beside.iterdir())
    return {"files": [str(out / name) for name in names], "refused": refused}


def written(document: Mapping[str, Any]) -> list[str]:
    """What `write_model` gave, for a person; nothing where nothing was written."""
    lines = [f"wrote {file}" for file in document.get("files", ())]
    lines += [f"not written: {k}: {reason}" for k, reason in document.get("refused", {}).items()]
    return ["\n".join(lines)] if lines else []
