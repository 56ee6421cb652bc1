"""What a device produced: a folder of raw files as qnn-net-run writes them, by tensor name.

qnn-net-run makes one folder Result_<i> for each line of input_list.txt, and in it one file for each
output, <tensor name>.raw of float32, or <tensor name>_native.raw of codes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, nearest
from jqnt.formats import Integer, storage_dtype

__all__ = ["read_device_outputs"]

_NATIVE = "_native"


def read_device_outputs(
    folder: str | Path, tensors: Iterable[str], encodings: Encodings
) -> dict[str, np.ndarray]:
    """Tensor name -> the flat float32 values of all samples in order; native files are dequantized.

    A file belongs to the tensor whose name is its own, where all but letters, digits, points and
    dashes counts as an underscore. Files that belong to no tensor are errors.

    Raises DataError, naming the folder or file, where there are no results, where samples have
    different files, and where a size is no multiple of the element's.
    """
    folder = Path(folder)
    known = {_plain(name): name for name in tensors}
    results = sorted(folder.glob("Result_*"), key=_number)
    if not results:
        raise DataError(f"{folder}: no folders Result_0, Result_1, ... of qnn-net-run are in it")
    found: dict[str, list[np.ndarray]] = {}
    for result in results:
        for file in sorted(result.rglob("*.raw")):
            stem = file.relative_to(result).as_posix().removesuffix(".raw")
            native = stem.endswith(_NATIVE) and _plain(stem) not in known
            name = known.get(_plain(stem.removesuffix(_NATIVE) if native else stem))
            if name is None:
                raise DataError(f"{file}: no tensor has that name{nearest(stem, known.values())}")
            found.setdefault(name, []).append(_values(file, encodings.tensors.get(name), native))
    for name, parts in found.items():
        if len(parts) != len(results):
            raise DataError(
                f"{folder}: tensor {name!r} is in {len(parts)} of {len(results)} results"
            )
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _number(path: Path) -> int:
    digits = path.name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _plain(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z.-]", "_", name).strip("_")


def _values(file: Path, encoding: Encoding | None, native: bool) -> np.ndarray:
    content = file.read_bytes()
    integers = encoding is not None and isinstance(encoding.format, Integer)
    kind = np.dtype("<f4")
    if native and encoding is not None and integers:
        stored = storage_dtype(encoding.format)
        width = stored.itemsize if stored.kind in "iu" else 1
        sign = "i" if encoding.format.signed else "u"  # pyright: ignore
        kind = np.dtype(f"<{sign}{width}")
    if len(content) % kind.itemsize or not content:
        raise DataError(f"{file}: {len(content)} bytes are no whole {kind.name} values")
    values = np.frombuffer(content, kind)
    if kind.kind == "f":
        return values
    assert encoding is not None
    return encoding.dequantize(values.astype(np.int64))
