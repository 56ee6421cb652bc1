"""The files that a quantized model leaves in a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jqnt.cli.exports import FORMATS, Wishes
from jqnt.errors import UnsupportedError
from jqnt.frozen import Frozen, replacing, save_frozen

__all__ = ["write_files", "write_model", "written"]


def write_files(out: Path, model: Frozen, formats: Sequence[str], wishes: Wishes) -> list[str]:
    """Writes the files of `formats` into the folder; all of them, or none. Gives the paths."""
    with replacing(out) as beside:
        for name in formats:
            FORMATS[name](model, beside, wishes)
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
        for label, name in (("qdq", "onnx-qdq"), ("encodings", "aimet")):
            try:
                FORMATS[name](model, beside, Wishes(version))
            except UnsupportedError as error:
                refused[label] = str(error)
        for name, text in (texts or {}).items():
            (beside / name).write_text(text)
        names = sorted(entry.name for entry in beside.iterdir())
    return {"files": [str(out / name) for name in names], "refused": refused}


def written(document: Mapping[str, Any]) -> list[str]:
    """What `write_model` gave, for a person; nothing where nothing was written."""
    lines = [f"wrote {file}" for file in document.get("files", ())]
    lines += [f"not written: {k}: {reason}" for k, reason in document.get("refused", {}).items()]
    return ["\n".join(lines)] if lines else []
