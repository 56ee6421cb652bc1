"""ncnn's calibration table, which ncnn2int8 reads: scales of inputs and weights, layer by layer.

tools/quantize/{ncnn2table,ncnn2int8}.cpp of https://github.com/Tencent/ncnn. A line holds a key and
numbers; `<layer>_param_0` has 127 / absmax for each output (each group of a depthwise layer),
`<layer>` one for the layer's input. Weight lines come first, an empty line ends the reading.
"""

from collections.abc import Mapping

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError, nearest
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph
from jqnt.interop.layers import layers_of

__all__ = ["from_ncnn_table", "to_ncnn_table"]

_GRID = Integer(8, signed=True, strict=True)
_WEIGHTS = "_param_0"


def to_ncnn_table(
    graph: Graph, encodings: Encodings, *, names: Mapping[str, str] | None = None
) -> str:
    """The table of the layers whose input and weight are encoded; `names` maps nodes to ncnn's
    layer names, by default they are equal.

    Raises UnsupportedError, naming the tensor, for grids other than symmetric int8 from -127.
    """
    weights, inputs = [], []
    for name, read in layers_of(graph).items():
        if read.data not in encodings or read.tensor not in encodings:
            continue
        key = (names or {}).get(name, name)
        if any(c.isspace() for c in key) or len(key) > 240:
            raise UnsupportedError(f"layer {key!r}: keys of a table are words of 240 characters")
        for tensor, lines, end in ((read.tensor, weights, _WEIGHTS), (read.data, inputs, "")):
            lines.append(f"{key}{end} {_numbers(tensor, encodings[tensor])}")
    return "".join(f"{line} \n" for line in (*weights, *inputs))


def from_ncnn_table(
    text: str, graph: Graph, *, names: Mapping[str, str] | None = None
) -> Encodings:
    """The encodings of a table, of inputs and weights of the graph's layers.

    Raises DataError, naming the line and key, for unknown layers, missing weight lines and what is
    no positive number.
    """
    layers = {(names or {}).get(n, n): read for n, read in layers_of(graph).items()}
    found: dict[str, Encoding] = {}
    keys: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        key, *words = line.split() or [""]
        if not key:
            break
        where = f"ncnn table, line {number}, {key!r}"
        is_weight = key.endswith(_WEIGHTS)
        layer = key.removesuffix(_WEIGHTS)
        if layer not in layers:
            raise DataError(f"{where}: no such layer{nearest(layer, layers)}")
        try:
            scale = _inverse(np.asarray(words, np.float32))
        except ValueError:
            raise DataError(f"{where}: {' '.join(words)[:60]!r} are no numbers") from None
        if not len(words) or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise DataError(f"{where}: positive numbers are needed")
        if not is_weight and len(words) != 1:
            raise DataError(f"{where}: an input has one scale, not {len(words)}")
        read = layers[layer]
        tensor = read.tensor if is_weight else read.data
        encoding = _encoding(scale, read.channel_axis if is_weight else None)
        if tensor in found and not np.array_equal(found[tensor].scale, encoding.scale):
            raise DataError(f"{where}: tensor {tensor!r} has another scale for another layer")
        found[tensor] = encoding
        keys.add(key)
    for key in keys:
        if not key.endswith(_WEIGHTS) and f"{key}{_WEIGHTS}" not in keys:
            raise DataError(f"ncnn table: layer {key!r} has no line {key + _WEIGHTS!r}")
    return Encodings(found)


def _inverse(factor: np.ndarray) -> np.ndarray:
    """The scale whose reciprocal is exactly `factor`, so that a table written again is equal."""
    with np.errstate(divide="ignore"):
        scale = np.float32(1) / factor
        for end in (np.float32(0), np.float32(np.inf)):
            near = np.nextafter(scale, end)
            better = (np.float32(1) / scale != factor) & (np.float32(1) / near == factor)
            scale = np.where(better, near, scale)
    return scale


def _encoding(scale: np.ndarray, axis: int | None) -> Encoding:
    if axis is None or scale.size == 1:
        return Encoding(_GRID, scale.reshape(()), np.zeros((), np.int64), PER_TENSOR)
    return Encoding(_GRID, scale, np.zeros(scale.shape, np.int64), Granularity(axis))


def _numbers(tensor: str, encoding: Encoding) -> str:
    """Nine digits, from which a float32 comes back whole."""
    if encoding.format != _GRID or np.any(encoding.zero_point):
        raise UnsupportedError(
            f"tensor {tensor!r}: ncnn's tables speak of symmetric int8 from -127 to 127, not of "
            f"{encoding.format.name}"
        )
    assert encoding.scale is not None
    values = np.float32(1) / encoding.scale.reshape(-1)
    return " ".join(f"{float(v):.9g}" for v in values)
