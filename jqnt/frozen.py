"""A frozen model on disk: float model, changed weights and encodings in one folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, DataError
from jqnt.graph.ir import Graph
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.to_onnx import to_onnx
from jqnt.types import Params

__all__ = ["Frozen", "check_out", "load_frozen", "replacing", "save_frozen"]

_FOLDER = "frozen"


@dataclass(frozen=True, eq=False)
class Frozen:
    """What emulation, exporters and the report read, and the float params for comparison.

    `reference` are the params of the same graph before rounding was learned.
    """

    graph: Graph
    reference: Params
    params: Params
    encodings: Encodings


def save_frozen(folder: Path, model: Frozen) -> None:
    """Writes folder/frozen: float.onnx, weights.npz (what learned rounding changed), encodings."""
    target = folder / _FOLDER
    target.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(model.graph, model.reference), target / "float.onnx")
    changed = {
        name: np.asarray(value)
        for name, value in model.params.items()
        if not np.array_equal(value, model.reference[name])
    }
    with open(target / "weights.npz", "wb") as file:
        np.savez_compressed(file, **changed)  # pyright: ignore[reportArgumentType]
    model.encodings.save(target / "encodings.json")


def load_frozen(path: Path) -> Frozen:
    """What `save_frozen` wrote to a folder; or a model file, whose encodings are its own.

    Raises ModelError or DataError, naming the file, for anything else.
    """
    if not path.is_dir():
        graph, params, encodings = import_onnx(path)
        return Frozen(graph, params, params, encodings)
    folder = path if path.name == _FOLDER else path / _FOLDER
    if not (folder / "float.onnx").is_file():
        raise DataError(f"{path}: no frozen model in this folder; jqnt quantize --out writes one")
    graph, params, _ = import_onnx(folder / "float.onnx")
    encodings = Encodings.load(folder / "encodings.json")
    try:
        with np.load(folder / "weights.npz", allow_pickle=False) as file:
            changed = dict(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'weights.npz'}: cannot be read ({error})") from None
    for name in (*changed, *encodings):
        graph.check(name)
    return Frozen(graph, params, {**params, **changed}, encodings)


def check_out(out: Path) -> None:
    """Raises ConfigError, before any work is done, if files could not be written there."""
    where = out
    while not where.exists():
        where = where.parent
    if not where.is_dir():
        raise ConfigError(f"{where} is a file, so {out} cannot be a folder; choose another --out")
    if not os.access(where, os.W_OK):
        raise ConfigError(f"{where} is not writable; choose another --out")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to; what is in it replaces the same names in `out` at
    the end, and nothing of it is there if an error comes first."""
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield beside
        out.mkdir(exist_ok=True)
        beside.chmod(out.stat().st_mode)
        for entry in sorted(beside.iterdir()):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
