"""Huawei AMCT's record.txt: the scales and offsets of each layer's input and weight.

Protobuf text of ScaleOffsetRecord: github.com/hicann/amct, amct_pytorch/classic/graph_based,
proto/scale_offset_record_pytorch.proto; q = clamp(rint(x / scale_d) + offset_d, -128, 127).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError, nearest
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph
from jqnt.graph.roles import Weight
from jqnt.interop.layers import layers_of
from jqnt.interop.prototext import Message, dump, parse

__all__ = ["from_amct_record", "to_amct_record"]


def to_amct_record(graph: Graph, encodings: Encodings) -> str:
    """One record for each layer whose input and weight are encoded; a layer is a node.

    Raises UnsupportedError, naming the tensor, for grids other than 8 and 16 bits with one scale
    (inputs), or symmetric with one scale or one per output channel (weights).
    """
    records: Message = []
    for name, read in layers_of(graph).items():
        if read.data not in encodings or read.tensor not in encodings:
            continue
        data, weight = encodings[read.data], encodings[read.tensor]
        scale, offset = _input(read.data, data)
        scales, offsets = _weight(read, weight)
        value: Message = [("scale_d", scale), ("offset_d", offset)]
        value += [("scale_w", s) for s in scales] + [("offset_w", o) for o in offsets]
        if (bits := data.format.bits) != 8:
            value.append(("act_type", f"INT{bits}"))
        if (bits := weight.format.bits) != 8:
            value.append(("wts_type", f"INT{bits}"))
        records.append(("record", [("key", name), ("value", value)]))
    return dump(records)


def from_amct_record(source: str | Path, graph: Graph) -> Encodings:
    """The encodings of a record file (a path) or of its text.

    Raises DataError, naming the file and the key, for unknown layers and malformed records.
    """
    if isinstance(source, Path):
        where = str(source)
        try:
            text = source.read_text()
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: cannot be read ({error})") from None
    else:
        where, text = "AMCT record", source
    layers = layers_of(graph)
    found: dict[str, Encoding] = {}
    for field, record in parse(text, where):
        if field in ("prune_record",):
            continue
        if field != "record" or not isinstance(record, list):
            raise DataError(f"{where}: unknown field {field!r}; records are expected")
        entry = dict(record)
        name = entry.get("key")
        if name not in layers:
            raise DataError(f"{where}: no layer {name!r}{nearest(str(name), layers)}")
        value = entry.get("value", [])
        at = f"{where}, layer {name!r}"
        if not isinstance(value, list):
            raise DataError(f"{at}: key 'value' must be a message")
        for tensor, encoding in _encodings(value, layers[name], at).items():
            if tensor in found and not _equal(found[tensor], encoding):
                raise DataError(f"{at}: tensor {tensor!r} has another grid for another layer")
            found[tensor] = encoding
    return Encodings(found)


def _input(name: str, encoding: Encoding) -> tuple[float, int]:
    fmt = encoding.format
    if not isinstance(fmt, Integer) or fmt.bits not in (8, 16) or np.size(encoding.scale) != 1:
        raise UnsupportedError(f"tensor {name!r}: AMCT has inputs of 8 or 16 bits with one scale")
    assert encoding.scale is not None and encoding.zero_point is not None
    shift = 0 if fmt.signed else 2 ** (fmt.bits - 1)
    return float(encoding.scale.reshape(())), int(encoding.zero_point.reshape(())) - shift


def _weight(read: Weight, encoding: Encoding) -> tuple[list[float], list[int]]:
    fmt, axis = encoding.format, encoding.granularity.axis
    if not isinstance(fmt, Integer) or not encoding.symmetric or not fmt.signed:
        raise UnsupportedError(f"weight {read.tensor!r}: AMCT's weights are symmetric and signed")
    along = axis is None or read.channel_axis is None or axis == read.channel_axis
    if encoding.granularity.block is not None or not along:
        raise UnsupportedError(f"weight {read.tensor!r}: AMCT has scales per output channel")
    assert encoding.scale is not None
    scales = [float(s) for s in encoding.scale.reshape(-1)]
    return scales, [0] * len(scales)


def _encodings(value: Message, read: Weight, where: str) -> Mapping[str, Encoding]:
    def numbers(key: str, kind: Any) -> np.ndarray:
        given = [v for k, v in value if k == key]
        if not given:
            raise DataError(f"{where}: no key {key!r}")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
            raise DataError(f"{where}: key {key!r} holds {given[:4]}, numbers are needed")
        return np.asarray(given, kind)

    scale_d, offset_d = numbers("scale_d", np.float32), numbers("offset_d", np.int64)
    scale_w, offset_w = numbers("scale_w", np.float32), numbers("offset_w", np.int64)
    if scale_w.shape != offset_w.shape or offset_w.any():
        raise DataError(f"{where}: key 'offset_w' must hold a zero for each scale_w")
    if scale_d.size != 1 or offset_d.size != 1:
        raise DataError(f"{where}: keys 'scale_d' and 'offset_d' hold one number each")
    kinds = {k: v for k, v in value if k in ("act_type", "wts_type")}
    try:
        formats = [
            Integer(int(str(kinds.get(k, "INT8")).removeprefix("INT")), signed=True)
            for k in ("act_type", "wts_type")
        ]
        one = scale_w.size == 1
        axis = PER_TENSOR if one or read.channel_axis is None else Granularity(read.channel_axis)
        shape = () if one else scale_w.shape
        low, high = formats[0].limits
        if not low <= int(offset_d[0]) <= high:
            raise DataError(f"offset_d {int(offset_d[0])} is outside {low} to {high}")
        return {
            read.data: Encoding(formats[0], scale_d.reshape(()), offset_d.reshape(())),
            read.tensor: Encoding(
                formats[1], scale_w.reshape(shape), offset_w.reshape(shape), axis
            ),
        }
    except (ValueError, DataError) as error:
        raise DataError(f"{where}: {error}") from None


def _equal(a: Encoding, b: Encoding) -> bool:
    same = a.format == b.format and np.array_equal(a.scale, b.scale)  # pyright: ignore
    return same and np.array_equal(a.zero_point, b.zero_point)  # pyright: ignore
