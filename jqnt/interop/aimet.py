"""Encodings files of AIMET, which QNN's converter reads as --quantization_overrides.

0.6.1, 1.0.0, 2.0.0 and 2.1.0 by Qualcomm's "Encoding specification" (AIMET documentation,
techniques/encoding_spec). In 0.6.1 and 1.0.0 real = (q + offset) * scale with unsigned q, so
offset = -zero_point, less 2^(bits-1) for a signed grid; 2.0.0 speaks as QuantizeLinear does, and
2.1.0 may quantize the scales too.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, UnsupportedError, nearest
from jqnt.formats import FP16, FP32, PER_TENSOR, Integer, Microscaling, Minifloat
from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.interop.axes import WeightAxes, weight_axes
from jqnt.lpbq import MULTIPLE_BITS, factor

__all__ = ["FLOATS", "VERSIONS", "to_aimet"]

VERSIONS = ("0.6.1", "1.0.0", "2.0.0", "2.1.0")

FLOATS = {
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e5m2": "float8e5m2",
    "float4_e2m1fn": "float4e2m1",
}
"""Our name of a float format -> that of version 2.0.0."""


def to_aimet(
    graph: Graph,
    params: Mapping[str, Any],
    encodings: Encodings,
    *,
    version: str = "1.0.0",
    lpbq: bool = False,
) -> dict[str, Any]:
    """The document of an encodings file, for `json.dump`.

    Static tensors are param_encodings, all others activation_encodings. Scales per channel
    follow the output channels, blocks the input channels, as the format implies; 2.0.0 names the
    axes. float16 tensors have a FLOAT entry, except in 2.0.0 and later, which know no such
    tensors and leave them out. With `lpbq`, block scales go out as a float per channel times a
    small integer per block (LPBQ; doubly quantized scales in 2.1.0).

    Raises ConfigError for an unknown version, UnsupportedError, naming the tensor, for what the
    version cannot say.
    """
    if version not in VERSIONS:
        raise ConfigError(f"no encodings version {version!r}{nearest(version, VERSIONS)}")
    static = static_tensors(graph)
    axes = weight_axes(graph, params)
    weights: dict[str, Any] = {}
    activations: dict[str, Any] = {}
    for name, encoding in encodings.items():
        graph.check(name)
        if encoding.format == FP32:
            continue
        if isinstance(encoding.format, Microscaling) or not encoding.granularity.single:
            raise UnsupportedError(
                f"tensor {name!r}: encodings files know no {encoding.format.name} with such blocks"
            )
        entry = _WRITERS[version](name, encoding, axes.get(name))
        if lpbq and entry is not None and encoding.granularity.block is not None:
            entry = _factored(entry, name, encoding, axes.get(name), version)
        if entry is not None:
            (weights if name in static else activations)[name] = entry
    if version in ("2.0.0", "2.1.0"):
        entries = [*activations.values(), *weights.values()]
        return {"version": version, "encodings": entries}
    arguments = _quantizer_args(encodings, static, version)
    if version == "0.6.1":
        return {
            "version": version,
            "activation_encodings": activations,
            "param_encodings": weights,
            "quantizer_args": arguments,
        }
    return {
        "version": version,
        "activation_encodings": list(activations.values()),
        "param_encodings": list(weights.values()),
        "quantizer_args": arguments,
        "excluded_layers": [],
    }


def _channel(name: str, encoding: Encoding, axes: WeightAxes | None) -> bool:
    """Whether the scales follow channels; UnsupportedError for another axis than the implied."""
    axis = encoding.granularity.axis
    if axis is None or encoding.scale is None or not encoding.scale.ndim:
        return False
    implied = axes.channel if axes is not None else 0
    if encoding.granularity.block is None and axis != implied:
        raise UnsupportedError(
            f"tensor {name!r}: this version implies scales along axis {implied}, the output "
            f"channels, not axis {axis}; 2.0.0 can name it"
        )
    return True


def _unsigned_offsets(encoding: Encoding) -> list[int]:
    assert isinstance(encoding.format, Integer) and encoding.zero_point is not None
    shift = 2 ** (encoding.format.bits - 1) if encoding.format.signed else 0
    return [-int(z) - shift for z in encoding.zero_point.reshape(-1)]


def _scales(encoding: Encoding) -> list[float]:
    assert encoding.scale is not None
    return [float(s) for s in encoding.scale.reshape(-1)]


def _half(name: str, encoding: Encoding, version: str) -> int:
    if encoding.format != FP16 or encoding.scale is not None:
        raise UnsupportedError(
            f"tensor {name!r}: version {version} knows float16, not {encoding.format.name}"
        )
    return 16


def _write_0_6_1(name: str, encoding: Encoding, axes: WeightAxes | None) -> list[dict[str, Any]]:
    if isinstance(encoding.format, Minifloat):
        return [{"bitwidth": _half(name, encoding, "0.6.1"), "dtype": "float"}]
    assert isinstance(encoding.format, Integer)
    if encoding.format.bits < 4:
        raise UnsupportedError(f"tensor {name!r}: version 0.6.1 has 4 to 32 bits")
    if encoding.granularity.block is not None:
        raise UnsupportedError(f"tensor {name!r}: version 0.6.1 has no blocks; 1.0.0 has")
    _channel(name, encoding, axes)
    bits = encoding.format.bits
    low = 1 if encoding.format.strict else 0
    return [
        {
            "bitwidth": bits,
            "dtype": "int",
            "is_symmetric": str(encoding.symmetric),
            "min": (low + offset) * scale,
            "max": (2**bits - 1 + offset) * scale,
            "scale": scale,
            "offset": offset,
        }
        for scale, offset in zip(_scales(encoding), _unsigned_offsets(encoding), strict=True)
    ]


def _write_1_0_0(name: str, encoding: Encoding, axes: WeightAxes | None) -> dict[str, Any]:
    if isinstance(encoding.format, Minifloat):
        bits = _half(name, encoding, "1.0.0")
        return {"name": name, "enc_type": "PER_TENSOR", "dtype": "FLOAT", "bw": bits}
    if encoding.format.bits < 2:
        raise UnsupportedError(f"tensor {name!r}: version 1.0.0 has 2 to 32 bits")
    kind = "PER_CHANNEL" if _channel(name, encoding, axes) else "PER_TENSOR"
    scales, offsets = _scales(encoding), _unsigned_offsets(encoding)
    entry = {
        "name": name,
        "enc_type": kind,
        "dtype": "INT",
        "bw": encoding.format.bits,
        "is_sym": encoding.symmetric,
        "scale": scales,
        "offset": offsets,
    }
    if encoding.granularity.block is None:
        return entry
    order = _block_order(name, encoding, axes)
    entry |= {"enc_type": "PER_BLOCK", "block_size": encoding.granularity.block}
    entry["scale"] = [scales[i] for i in order]
    entry["offset"] = [offsets[i] for i in order]
    return entry


def _block_order(name: str, encoding: Encoding, axes: WeightAxes | None) -> np.ndarray:
    """Where each block's scale lies in ours, counted channel by channel."""
    assert encoding.scale is not None
    shape, axis = encoding.scale.shape, encoding.granularity.axis
    if axes is not None and axes.channel is not None and axis == axes.summed:
        index = np.arange(encoding.scale.size).reshape(shape)
        order = np.moveaxis(index, (axes.channel, axes.summed), (0, 1))
        if order.size == order.shape[0] * order.shape[1]:
            return order.reshape(-1)
    raise UnsupportedError(
        f"tensor {name!r}: blocks run along the input channels of a matrix or a 1x1 kernel"
    )


def _factored(
    entry: dict[str, Any], name: str, encoding: Encoding, axes: WeightAxes | None, version: str
) -> dict[str, Any]:
    """A block-wise entry with its scales as products."""
    if axes is None or axes.channel is None or not encoding.symmetric:
        raise UnsupportedError(f"tensor {name!r}: LPBQ is for symmetric weights with channels")
    assert encoding.scale is not None
    channel, multiples = factor(encoding.scale, axes.channel, name)
    bits = encoding.format.bits
    if version == "1.0.0":
        order = _block_order(name, encoding, axes)
        wide = bits + MULTIPLE_BITS
        return {
            **entry,
            "enc_type": "LPBQ",
            "bw": wide,
            "compressed_bw": bits,
            "scale": [float(s) for s in channel.reshape(-1)],
            "offset": [-(2 ** (wide - 1))] * channel.size,
            "per_block_int_scale": multiples.reshape(-1)[order].tolist(),
        }
    if version == "2.1.0":
        scales = {"x": multiples.tolist(), "x_scale": channel.reshape(-1).astype(float).tolist()}
        return {**entry, "y_scale": {**scales, "axis": axes.channel}}
    rest = {key: value for key, value in entry.items() if key != "y_scale"}
    rest["per_block_int_scale"] = multiples.tolist()
    return {**rest, "per_channel_float_scale": channel.astype(float).tolist()}


def _write_2_0_0(name: str, encoding: Encoding, axes: WeightAxes | None) -> dict[str, Any] | None:
    fmt = encoding.format
    if isinstance(fmt, Minifloat):
        if fmt.bits == 16:
            return None
        if fmt.name not in FLOATS:
            raise UnsupportedError(f"tensor {name!r}: version 2.0.0 has no {fmt.name}")
        entry = {"name": name, "output_dtype": FLOATS[fmt.name], "y_scale": 1.0}
        return entry if encoding.scale is None else entry | _grid_2_0_0(encoding)
    if fmt.bits not in (2, 4, 8, 16, 32):
        raise UnsupportedError(f"tensor {name!r}: version 2.0.0 has no {fmt.name}")
    assert encoding.zero_point is not None
    entry: dict[str, Any] = {"name": name, "output_dtype": fmt.name} | _grid_2_0_0(encoding)
    if encoding.zero_point.any():
        entry["y_zero_point"] = encoding.zero_point.tolist()
    return entry


def _grid_2_0_0(encoding: Encoding) -> dict[str, Any]:
    assert encoding.scale is not None
    entry: dict[str, Any] = {"y_scale": encoding.scale.astype(float).tolist()}
    if encoding.granularity.axis is not None and encoding.scale.ndim:
        entry["axis"] = encoding.granularity.axis
    if encoding.granularity.block is not None:
        entry["block_size"] = encoding.granularity.block
    return entry


def _quantizer_args(encodings: Encodings, static: frozenset[str], version: str) -> dict[str, Any]:
    """What AIMET writes for information: the commonest widths."""

    def commonest(weights: bool) -> int:
        bits = Counter(
            e.format.bits
            for name, e in encodings.items()
            if (name in static) == weights and e.format.bits <= 16
        )
        return bits.most_common(1)[0][0] if bits else 8

    matrices = [e for n, e in encodings.items() if n in static and e.format.bits <= 16]
    symmetric = bool(matrices) and all(e.symmetric for e in matrices)
    channels = any(e.granularity != PER_TENSOR for e in matrices)
    text = version == "0.6.1"
    return {
        "activation_bitwidth": commonest(False),
        "param_bitwidth": commonest(True),
        "dtype": "int",
        "is_symmetric": str(symmetric) if text else symmetric,
        "per_channel_quantization": str(channels) if text else channels,
        "quant_scheme": "post_training_tf",
    }


_WRITERS = {
    "0.6.1": _write_0_6_1,
    "1.0.0": _write_1_0_0,
    "2.0.0": _write_2_0_0,
    "2.1.0": _write_2_0_0,
}
