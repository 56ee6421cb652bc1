"""Reading encodings files of AIMET: what `aimet.to_aimet` writes, and what AIMET itself does."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, JqntError, UnsupportedError, nearest
from jqnt.formats import FP16, FP32, PER_TENSOR, Granularity, Integer, format_named
from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.interop.aimet import FLOATS, VERSIONS
from jqnt.interop.axes import WeightAxes, weight_axes

__all__ = ["from_aimet"]


def from_aimet(
    source: str | Path | Mapping[str, Any],
    graph: Graph,
    params: Mapping[str, Any],
    *,
    unknown: list[str] | None = None,
) -> Encodings:
    """The encodings of a file (a path) or document, of any of the versions, for a graph.

    Symmetric entries of 0.6.1 and 1.0.0 are signed grids, all others unsigned; LPBQ entries
    become blocks of scale * per_block_int_scale. With a list `unknown`, tensors that the graph
    does not have are noted there and left out.

    Raises DataError, naming the file and the key at fault, for a file that is malformed or that
    speaks of tensors which the graph does not have.
    """
    where = "encodings" if isinstance(source, Mapping) else str(source)
    document = source if isinstance(source, Mapping) else _parsed(Path(source))
    version = document.get("version")
    if version not in VERSIONS:
        raise DataError(
            f"{where}: key 'version' is {version!r}; versions that can be read are "
            f"{', '.join(VERSIONS)}"
        )
    axes = weight_axes(graph, params)
    static = static_tensors(graph)
    known = set(graph.tensors)
    found: dict[str, Encoding] = {}
    for name, key, entry in _entries(document, version, where):
        if name not in known and unknown is not None:
            unknown.append(name)
            continue
        if name not in known:
            raise DataError(
                f"{where}: {key} speaks of tensor {name!r}, which graph {graph.name!r} does not "
                f"have{nearest(name, known)}"
            )
        try:
            found[name] = _READERS[version](entry, axes.get(name), name in static)
        except KeyError as error:
            raise DataError(f"{where}: {key}, tensor {name!r}: no key {error}") from None
        except (TypeError, ValueError, IndexError, JqntError) as error:
            raise DataError(f"{where}: {key}, tensor {name!r}: {error}") from None
    return Encodings(found)


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: the top level is no object")
    return document


def _entries(
    document: Mapping[str, Any], version: str, where: str
) -> Iterator[tuple[str, str, Any]]:
    """(tensor, key, entry) of every entry."""
    keys = (
        ("encodings",)
        if version in ("2.0.0", "2.1.0")
        else ("activation_encodings", "param_encodings")
    )
    kind = dict if version == "0.6.1" else list
    for key in keys:
        group = document.get(key)
        if not isinstance(group, kind):
            raise DataError(f"{where}: key {key!r} must hold a {kind.__name__} of encodings")
        if isinstance(group, dict):
            yield from ((name, key, entry) for name, entry in group.items())
            continue
        for i, entry in enumerate(group):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise DataError(f"{where}: {key}[{i}] is no object with a 'name'")
            yield entry["name"], key, entry


def _grid(bits: int, symmetric: bool, strict: bool, scales: Any, offsets: Any) -> Encoding:
    """The encoding of unsigned offsets: signed where symmetric."""
    scale, offset = np.asarray(scales, np.float32), np.asarray(offsets, np.int64)
    fmt = Integer(bits, signed=symmetric, strict=strict and symmetric)
    zero_point = -offset - (2 ** (bits - 1) if symmetric else 0)
    return Encoding(fmt, scale, zero_point)


def _of_channels(encoding: Encoding, axes: WeightAxes | None) -> Encoding:
    axis = 0 if axes is None or axes.channel is None else axes.channel
    return Encoding(encoding.format, encoding.scale, encoding.zero_point, Granularity(axis))


def _truth(value: Any) -> bool:
    if value in (True, "True", "true"):
        return True
    if value in (False, "False", "false"):
        return False
    raise DataError(f"{value!r} is neither True nor False")


def _read_0_6_1(entries: Any, axes: WeightAxes | None, static: bool) -> Encoding:
    if not isinstance(entries, list) or not entries:
        raise DataError("its value is no list of encodings")
    first = entries[0]
    if first.get("dtype", "int") == "float":
        return _read_float(first["bitwidth"])
    bits = int(first["bitwidth"])
    symmetric = _truth(first.get("is_symmetric", "False"))
    scales, offsets = zip(*(_scale_offset(entry, bits) for entry in entries), strict=True)
    strict = "min" in first and round(first["min"] / scales[0] - offsets[0]) == 1
    symmetric = symmetric and set(offsets) == {-(2 ** (bits - 1))}
    channels = static and (len(entries) > 1 or _one_channel(axes))
    grid = _grid(
        bits,
        symmetric,
        strict,
        scales if channels else scales[0],
        offsets if channels else offsets[0],
    )
    return _of_channels(grid, axes) if channels else grid


def _one_channel(axes: WeightAxes | None) -> bool:
    return axes is not None and axes.channels == 1


def _scale_offset(entry: Mapping[str, Any], bits: int) -> tuple[float, int]:
    """Both as given, or from the range."""
    if "scale" in entry and "offset" in entry:
        return float(entry["scale"]), int(entry["offset"])
    scale = (float(entry["max"]) - float(entry["min"])) / (2**bits - 1)
    return scale, round(float(entry["min"]) / scale)


def _read_float(bits: Any) -> Encoding:
    if bits == 32:
        return Encoding(FP32)
    if bits == 16:
        return Encoding(FP16)
    raise DataError(f"a float encoding of {bits} bits; 16 and 32 are known")


def _read_1_0_0(entry: Mapping[str, Any], axes: WeightAxes | None, static: bool) -> Encoding:
    if entry["dtype"] == "FLOAT":
        return _read_float(entry["bw"])
    kind, bits, symmetric = entry["enc_type"], int(entry["bw"]), _truth(entry["is_sym"])
    scales, offsets = entry["scale"], entry["offset"]
    if kind == "LPBQ":
        bits = int(entry["compressed_bw"])
        multiples = np.asarray(entry["per_block_int_scale"], np.float32)
        blocks = multiples.reshape(len(scales), -1) * np.asarray(scales, np.float32)[:, None]
        scales, offsets = blocks.reshape(-1), np.full(blocks.size, -(2 ** (bits - 1)))
    symmetric = symmetric and set(map(int, offsets)) == {-(2 ** (bits - 1))}
    if kind == "PER_TENSOR":
        return _grid(bits, symmetric, False, scales[0], offsets[0])
    grid = _grid(bits, symmetric, False, scales, offsets)
    if kind == "PER_CHANNEL":
        return _of_channels(grid, axes)
    if kind not in ("PER_BLOCK", "LPBQ"):
        raise DataError(f"enc_type {kind!r}{nearest(str(kind), ['PER_TENSOR', 'PER_CHANNEL'])}")
    return _blocks(grid, int(entry["block_size"]), axes)


def _blocks(grid: Encoding, size: int, axes: WeightAxes | None) -> Encoding:
    """Scales given channel by channel, in the shape of the tensor's blocks."""
    if axes is None or axes.channel is None:
        raise DataError("blocks on a tensor that is no weight with output channels")
    first = axes.channel < axes.summed
    shape = [1] * axes.rank
    shape[axes.channel], shape[axes.summed] = axes.channels, -1

    def laid(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(axes.channels, -1)
        return (rows if first else rows.T).reshape(shape)

    assert grid.scale is not None and grid.zero_point is not None
    return Encoding(
        grid.format, laid(grid.scale), laid(grid.zero_point), Granularity(axes.summed, size)
    )


def _read_2_0_0(entry: Mapping[str, Any], axes: WeightAxes | None, static: bool) -> Encoding:
    kind = entry["output_dtype"]
    if kind.startswith("float"):
        names = {theirs: ours for ours, theirs in FLOATS.items()}
        if kind not in names or np.any(np.asarray(entry.get("y_scale", 1.0)) != 1):
            raise UnsupportedError(f"output_dtype {kind!r} with a scale")
        return Encoding(format_named(names[kind]))
    fmt = format_named(kind)
    if "per_block_int_scale" in entry:
        scale = np.asarray(entry["per_block_int_scale"], np.float32) * np.asarray(
            entry["per_channel_float_scale"], np.float32
        )
    elif isinstance(entry["y_scale"], Mapping):
        scale = _double(entry["y_scale"])
    else:
        scale = np.asarray(entry["y_scale"], np.float32)
    zero_point = np.asarray(entry.get("y_zero_point", np.zeros(scale.shape)), np.int64)
    axis = entry.get("axis")
    granularity = PER_TENSOR if not scale.ndim else Granularity(axis, entry.get("block_size"))
    if scale.ndim and axis is None:
        raise DataError("several scales and no key 'axis'")
    return Encoding(fmt, scale, zero_point, granularity)


def _double(scales: Mapping[str, Any]) -> np.ndarray:
    """Scales that are quantized themselves, as 2.1.0 has them: (x - x_zero_point) * x_scale."""
    codes = np.asarray(scales["x"], np.int64)
    inner = np.asarray(scales["x_scale"], np.float32)
    zero = np.asarray(scales.get("x_zero_point", np.zeros(inner.shape)), np.int64)
    if not inner.ndim:
        return (codes - zero).astype(np.float32) * inner
    axis = scales["axis"]
    if scales.get("block_size") is not None:
        laid = Encoding(Integer(8), inner, zero, Granularity(axis, scales["block_size"]))
    else:
        laid = Encoding(Integer(8), inner, zero, Granularity(axis))
    return laid.dequantize(codes)


_READERS = {
    "0.6.1": _read_0_6_1,
    "1.0.0": _read_1_0_0,
    "2.0.0": _read_2_0_0,
    "2.1.0": _read_2_0_0,
}
