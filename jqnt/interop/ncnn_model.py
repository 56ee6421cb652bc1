"""ncnn's model files: the text of layers (.param) and their arrays (.bin), written and read.

https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure, src/modelbin.cpp.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jqnt.errors import DataError

__all__ = ["Layer", "dump_bin", "dump_param", "parse"]

_MAGIC = 7767517
_INT8_TAG = 0x000D4B38
_ARRAY = -23300
"""A key k whose value is an array is written as -23300 - k."""


@dataclass(frozen=True)
class Layer:
    """One line of a .param file; `arrays` are what the .bin file holds for it, in order.

    Weights carry a tag that tells int8 (padded to four bytes) from float32; all other arrays are
    raw float32.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, Any] = field(default_factory=dict)
    arrays: tuple[np.ndarray, ...] = ()


def dump_param(layers: Sequence[Layer]) -> str:
    """The text of a .param file."""
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(_MAGIC), f"{len(layers)} {blobs}"]
    for layer in layers:
        words = [layer.kind, layer.name, str(len(layer.inputs)), str(len(layer.outputs))]
        words += [*layer.inputs, *layer.outputs]
        words += [_param(key, value) for key, value in sorted(layer.params.items())]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def dump_bin(layers: Sequence[Layer]) -> bytes:
    """The bytes of a .bin file."""
    out = bytearray()
    for layer in layers:
        for i, array in enumerate(layer.arrays):
            if array.dtype == np.int8:
                out += struct.pack("<I", _INT8_TAG) + array.tobytes()
                out += bytes(-len(out) % 4)
            else:
                if i == 0 and layer.kind in _WEIGHTED:
                    out += struct.pack("<I", 0)
                out += array.astype("<f4").tobytes()
    return bytes(out)


def parse(text: str, content: bytes) -> tuple[Layer, ...]:
    """The layers of a .param and a .bin file.

    Raises DataError, naming the line or the layer, for text that is no .param file, layers whose
    arrays are not known here, and content that is too short or too long.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != str(_MAGIC):
        raise DataError(f"ncnn .param: line 1 is {lines[:1]}, not {_MAGIC}")
    counts = _whole(lines[1].split() if len(lines) > 1 else (), 2)
    if len(counts) != 2:
        raise DataError("ncnn .param: line 2 must hold the numbers of layers and of blobs")
    body = [(i, line.split()) for i, line in enumerate(lines[2:], 3) if line.strip()]
    if len(body) != counts[0]:
        raise DataError(f"ncnn .param: {counts[0]} layers are announced, {len(body)} follow")
    reader = _Reader(content)
    layers = tuple(_layer(number, words, reader) for number, words in body)
    if reader.place != len(content):
        raise DataError(f"ncnn .bin: {len(content) - reader.place} bytes are left over")
    return layers


def _param(key: int, value: Any) -> str:
    if isinstance(value, Sequence):
        return f"{_ARRAY - key}={len(value)}," + ",".join(map(_number, value))
    return f"{key}={_number(value)}"


def _number(value: Any) -> str:
    """Floats show a point or an exponent, by which ncnn tells them from integers."""
    if isinstance(value, int | np.integer):
        return str(int(value))
    text = f"{float(value):.9g}"
    return text if any(c in text for c in ".e") else f"{text}.0"


def _whole(words: Sequence[str], count: int) -> list[int]:
    found = [int(word) for word in words[:count] if word.isdigit()]
    return found if len(words) >= count else []


def _layer(number: int, words: Sequence[str], reader: "_Reader") -> Layer:
    where = f"ncnn .param, line {number}"
    counts = _whole(words[2:], 2)
    if len(counts) != 2 or len(words) < 4 + sum(counts):
        raise DataError(f"{where}: a layer is 'type name inputs outputs blobs... key=value...'")
    middle, end = 4 + counts[0], 4 + sum(counts)
    params: dict[int, Any] = {}
    for word in words[end:]:
        key, _, value = word.partition("=")
        try:
            if int(key) <= _ARRAY:
                _, *items = value.split(",")
                params[_ARRAY - int(key)] = tuple(map(_value, items))
            else:
                params[int(key)] = _value(value)
        except ValueError:
            raise DataError(f"{where}: {word!r} is no key=value of numbers") from None
    layer = Layer(words[0], words[1], tuple(words[4:middle]), tuple(words[middle:end]), params)
    try:
        arrays = _ARRAYS.get(layer.kind, _no_arrays)(params, reader)
    except (KeyError, struct.error, ValueError) as error:
        raise DataError(f"{where}: the arrays of {layer.name!r}: {error}") from None
    return Layer(layer.kind, layer.name, layer.inputs, layer.outputs, params, arrays)


def _value(word: str) -> int | float:
    return float(word) if any(c in word for c in ".en") else int(word)


@dataclass
class _Reader:
    """A place in the content of a .bin file."""

    content: bytes
    place: int = 0

    def floats(self, count: int) -> np.ndarray:
        """Raw float32 values."""
        self.place += 4 * count
        if self.place > len(self.content):
            raise ValueError(f"the .bin file ends {self.place - len(self.content)} bytes early")
        return np.frombuffer(self.content, "<f4", count, self.place - 4 * count)

    def weights(self, count: int) -> np.ndarray:
        """int8 or float32 values behind their tag."""
        (tag,) = struct.unpack_from("<I", self.content, self.place)
        self.place += 4
        if tag == 0:
            return self.floats(count)
        if tag != _INT8_TAG:
            raise ValueError(f"weights with tag {tag:#x}; 0 and {_INT8_TAG:#x} can be read")
        found = np.frombuffer(self.content, np.int8, count, self.place)
        self.place += count + -count % 4
        return found


def _no_arrays(params: Mapping[int, Any], reader: _Reader) -> tuple[np.ndarray, ...]:
    return ()


def _weighted(bias_key: int, size_key: int) -> Callable[..., tuple[np.ndarray, ...]]:
    def read(params: Mapping[int, Any], reader: _Reader) -> tuple[np.ndarray, ...]:
        outputs, term = params[0], params.get(8, 0)
        arrays = [reader.weights(params[size_key])]
        if params.get(bias_key, 0):
            arrays.append(reader.floats(outputs))
        if term:
            shared = term % 100 == 2 and 7 in params
            scales = 1 if shared else params.get(7, outputs)
            arrays += [reader.floats(scales), reader.floats(1)]
        if term > 100:
            arrays.append(reader.floats(1))
        return tuple(arrays)

    return read


def _scales(params: Mapping[int, Any], reader: _Reader) -> tuple[np.ndarray, ...]:
    return (reader.floats(params.get(0, 1)),)


_WEIGHTED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
_ARRAYS: Mapping[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "Convolution": _weighted(5, 6),
    "ConvolutionDepthWise": _weighted(5, 6),
    "InnerProduct": _weighted(1, 2),
    "Quantize": _scales,
}
