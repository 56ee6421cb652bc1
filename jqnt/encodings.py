"""The frozen numeric result of quantization, in plain numpy: one encoding per tensor."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jqnt.errors import ConfigError, DataError, nearest
from jqnt.formats import Format, Integer, Microscaling, Minifloat
from jqnt.granularity import PER_TENSOR, Granularity

__all__ = ["Encoding", "Encodings"]

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Encoding:
    """real = (code - zero_point) * scale, in the words of ONNX QuantizeLinear.

    `scale` is float32 and `zero_point` int64, both in the shape that `granularity` says. A float
    format has no zero point and may have no scale; of a microscaled one `scale` is the whole
    tensor's, if it has one, and `granularity` says along which axis its blocks lie.
    """

    format: Format
    scale: Any = None
    zero_point: Any = None
    granularity: Granularity = PER_TENSOR

    def __post_init__(self):
        if self.scale is not None:
            object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        if isinstance(self.format, Integer):
            if self.scale is None or self.zero_point is None:
                raise DataError(f"an {self.format.name} encoding needs a scale and a zero point")
            if self.format.shifted:
                raise DataError(f"{self.format.name} is kept as odd codes of half the scale")
            object.__setattr__(self, "zero_point", np.asarray(self.zero_point, np.int64))
            if self.scale.shape != self.zero_point.shape:
                raise DataError(
                    f"scale and zero point differ in shape: {self.scale.shape}, "
                    f"{self.zero_point.shape}"
                )
        elif isinstance(self.format, Microscaling) and self.granularity.axis is None:
            raise DataError(f"an {self.format.name} encoding needs the axis of its blocks")
        if self.scale is not None and not (
            np.isfinite(self.scale).all() and (self.scale > 0).all()
        ):
            raise DataError("a scale must be positive and finite")

    @property
    def symmetric(self) -> bool:
        """Whether zero sits on the middle code: 0 if signed, 2^(bits-1) if not."""
        if not isinstance(self.format, Integer) or self.zero_point is None:
            return False
        middle = 0 if self.format.signed else 2 ** (self.format.bits - 1)
        return bool((self.zero_point == middle).all())

    def same_grid(self, other: "Encoding") -> bool:
        """Whether equal codes mean equal reals, of one format."""
        pairs = ((self.scale, other.scale), (self.zero_point, other.zero_point))
        same = all(np.array_equal(a, b) for a, b in pairs)
        return same and (self.format, self.granularity) == (other.format, other.granularity)

    def expand(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scale or zero point in a shape that broadcasts against a tensor of `shape`."""
        if self.granularity.axis is None or values.ndim == 0:
            return values
        blocks = self.granularity.block_sizes(len(shape))
        if blocks is None:
            axes = self.granularity.axes(len(shape))
            return values.transpose(np.argsort(axes)).reshape(
                [n if d in axes else 1 for d, n in enumerate(shape)]
            )
        for axis, size in blocks.items():
            values = np.repeat(values, size, axis)
        return values[tuple(slice(n) for n in shape)]

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """int64 codes: clip(round_half_even(x / scale) + zero_point, qmin, qmax) in float32."""
        if not isinstance(self.format, Integer) or self.scale is None or self.zero_point is None:
            raise DataError(f"{self.format.name} has no integer codes")
        x = np.asarray(x, np.float32)
        code = np.rint(x / self.expand(self.scale, x.shape)).astype(np.float64)
        code = np.clip(code + self.expand(self.zero_point, x.shape), *self.format.limits)
        return np.asarray(code, np.int64)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """float32 reals: (code - zero_point) * scale."""
        if self.scale is None or self.zero_point is None:
            raise DataError(f"{self.format.name} has no integer codes")
        shift = codes - self.expand(self.zero_point, codes.shape)
        return np.asarray(shift.astype(np.float32) * self.expand(self.scale, codes.shape))


@dataclass(frozen=True)
class Encodings(Mapping[str, Encoding]):
    """Tensor name -> encoding, for activations, weights and biases alike.

    `codes` keeps integers that float32 parameters cannot hold exactly (int32 biases beyond 2^24
    of an imported integer model).
    """

    tensors: Mapping[str, Encoding] = field(default_factory=dict)
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Encoding:
        if name not in self.tensors:
            raise KeyError(f"no encoding for tensor {name!r}{nearest(name, self.tensors)}")
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def save(self, path: str | Path) -> None:
        """Writes `path` (JSON) and its arrays beside it (`path` with suffix .npz), atomically."""
        path = Path(path)
        entries: dict[str, Any] = {}
        arrays: dict[str, Any] = {f"codes/{name}": code for name, code in self.codes.items()}
        for name, e in self.tensors.items():
            entries[name] = {"format": _written(e.format), "granularity": vars(e.granularity)}
            if e.scale is not None:
                arrays[f"scale/{name}"] = e.scale
            if e.zero_point is not None:
                arrays[f"zero_point/{name}"] = e.zero_point
        text = json.dumps({"jqnt_encodings": _VERSION, "tensors": entries}, indent=1)
        arrays_path = path.with_suffix(".npz")
        with open(f"{arrays_path}.tmp", "wb") as file:
            np.savez(file, **arrays)
        Path(f"{path}.tmp").write_text(text)
        os.replace(f"{arrays_path}.tmp", arrays_path)
        os.replace(f"{path}.tmp", path)

    @staticmethod
    def load(path: str | Path) -> "Encodings":
        """Reads what `save` wrote; raises DataError that names the file and the key at fault."""
        path = Path(path)
        try:
            document = json.loads(path.read_text())
            version = document["jqnt_encodings"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not an encodings file of jqnt ({error})") from None
        if version != _VERSION:
            raise DataError(f"{path}: encodings version {version}, this jqnt reads {_VERSION}")
        try:
            with np.load(path.with_suffix(".npz")) as file:
                arrays = dict(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{path.with_suffix('.npz')}: cannot be read ({error})") from None
        tensors = {}
        for name, entry in document["tensors"].items():
            try:
                lists = entry["granularity"].items()
                tensors[name] = Encoding(
                    _read(entry["format"]),
                    arrays.get(f"scale/{name}"),
                    arrays.get(f"zero_point/{name}"),
                    Granularity(**{k: tuple(v) if isinstance(v, list) else v for k, v in lists}),
                )
            except (KeyError, TypeError, DataError, ConfigError) as error:
                raise DataError(f"{path}: tensor {name!r}: {error}") from None
        prefix = "codes/"
        codes = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        return Encodings(tensors, codes)


_KINDS = {"integer": Integer, "minifloat": Minifloat, "microscaling": Microscaling}


def _written(fmt: Format | None) -> dict[str, Any] | None:
    """A format as JSON: its kind and its fields."""
    if fmt is None:
        return None
    values = vars(fmt)
    if isinstance(fmt, Microscaling):
        values = {**values, "element": _written(fmt.element), "scale": _written(fmt.scale)}
    return {"kind": type(fmt).__name__.lower(), **values}


def _read(document: dict[str, Any]) -> Any:
    values = {k: _read(v) if isinstance(v, dict) else v for k, v in document.items()}
    return _KINDS[values.pop("kind")](**values)
