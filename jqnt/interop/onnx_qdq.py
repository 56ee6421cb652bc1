"""QDQ ONNX: the float graph with QuantizeLinear and DequantizeLinear where encodings are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, version_converter

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, UnsupportedError, nearest
from jqnt.formats import FP32, Integer, Microscaling, Minifloat
from jqnt.graph.ir import Graph
from jqnt.interop.to_onnx import initializer, to_onnx

__all__ = ["to_qdq"]

_MINIFLOATS: Mapping[str, tuple[Any, int]] = {
    "float16": (np.float16, 13),
    "bfloat16": (ml_dtypes.bfloat16, 13),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, 19),
    "float8_e5m2": (ml_dtypes.float8_e5m2, 19),
    "float4_e2m1fn": (ml_dtypes.float4_e2m1fn, 23),
}
"""Format -> numpy type, and the first opset whose Cast knows it."""


def to_qdq(
    graph: Graph, params: Mapping[str, Any], encodings: Encodings, *, opset: int | None = None
) -> onnx.ModelProto:
    """A QDQ model that computes what `apply` computes under these encodings.

    Names: a tensor t keeps its name on the float side. Its node writes t; QuantizeLinear makes
    `t_QuantizeLinear_Output`, DequantizeLinear `t_DequantizeLinear_Output`, which its readers
    read; scale and zero point are `t_scale`, `t_zero_point`. A graph output keeps its name for
    the caller: its node writes `t_QuantizeLinear_Input`, DequantizeLinear makes t. A weight or
    bias w is the initializer `w_quantized`, and w is what DequantizeLinear makes of it. Float
    formats without a scale are a pair of Casts by way of `t_float16` (or the format's name).

    `opset` is by default the lowest that holds the graph and its formats: 13, 21 for types of 16
    and 4 bits and for blocks; below 21 narrow weights are held in int8. Grids without an ONNX
    type are held in the next larger one, activations behind a Clip to the same codes.

    Raises UnsupportedError, naming the tensor, for what the opset or ONNX cannot hold.
    """
    for name, encoding in encodings.items():
        graph.check(name)
        if isinstance(encoding.format, Microscaling) or not encoding.granularity.single:
            raise UnsupportedError(
                f"tensor {name!r}: ONNX has no {encoding.format.name} with such blocks; blocks of "
                f"integers along one axis it has"
            )
    lowest = max(graph.opsets.get("", 1), 13)
    if opset is not None and opset < lowest:
        raise ConfigError(f"opset {opset} is below the graph's own, {lowest}")
    needed = max((_needed(n, e, opset) for n, e in encodings.items()), default=13)
    opset = max(lowest, needed) if opset is None else opset
    model = _at_opset(to_onnx(graph, params), opset)
    writer = _Writer(graph, params, encodings, opset)
    nodes = list(model.graph.node)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in graph.tensors:
        encoding = encodings.tensors.get(name)
        if encoding is None or encoding.format == FP32:
            continue
        if name in held:
            del held[name]
            writer.parameter(name, encoding)
        else:
            writer.activation(name, encoding)
    for node in nodes:
        _rewire(node, writer.reads)
        node.output[:] = [writer.writes.get(name, name) for name in node.output]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(
        _in_order([*writer.nodes, *nodes], [*graph.inputs, *held, *writer.tensors])
    )
    model.graph.initializer.extend([*held.values(), *writer.tensors.values()])
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass(frozen=True, eq=False)
class _Writer:
    """What the encodings add to a model; `reads` and `writes` rename tensors in its nodes."""

    graph: Graph
    params: Mapping[str, Any]
    encodings: Encodings
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)

    def activation(self, name: str, encoding: Encoding) -> None:
        """Quantizes a computed tensor between its maker and its readers."""
        output = name in self.graph.outputs
        source = f"{name}_QuantizeLinear_Input" if output else name
        result = name if output else f"{name}_DequantizeLinear_Output"
        if output:
            self.writes[name] = source
        else:
            self.reads[name] = result
        if isinstance(encoding.format, Minifloat) and encoding.scale is None:
            self._casts(source, name, result, encoding.format)
            return
        dtype = _stored(name, encoding, self.opset)
        grid = self._grid(name, encoding, dtype)
        middle = f"{name}_QuantizeLinear_Output"
        attrs = _attributes(encoding)
        self._node("QuantizeLinear", [self._clipped(source, name, encoding), *grid], middle, attrs)
        self._node("DequantizeLinear", [middle, *grid], result, attrs)

    def parameter(self, name: str, encoding: Encoding) -> None:
        """Stores a param as codes."""
        codes = self.encodings.codes.get(name)
        value = np.asarray(self.params[name] if name in self.params else self.graph.constants[name])
        stored = f"{name}_quantized"
        if isinstance(encoding.format, Minifloat):
            dtype, top = _minifloat(name, encoding.format)[0], encoding.format.max
            if encoding.scale is not None:
                value = np.float32(value) / encoding.expand(encoding.scale, value.shape)
            self.tensors[stored] = initializer(stored, np.clip(value, -top, top).astype(dtype))
            if encoding.scale is None:
                self._node("Cast", [stored], name, {"to": int(onnx.TensorProto.FLOAT)})
                return
            grid = self._grid(name, encoding, np.dtype(dtype))
            self._node("DequantizeLinear", [stored, *grid], name, _attributes(encoding))
            return
        codes = encoding.quantize(value) if codes is None else codes
        assert isinstance(encoding.format, Integer)
        dtype = _dtype(name, encoding.format, self.opset)
        self.tensors[stored] = initializer(stored, codes.astype(dtype))
        grid = self._grid(name, encoding, dtype)
        self._node("DequantizeLinear", [stored, *grid], name, _attributes(encoding))

    def _grid(self, name: str, encoding: Encoding, dtype: np.dtype) -> list[str]:
        assert encoding.scale is not None
        scale, zero = f"{name}_scale", f"{name}_zero_point"
        self.tensors[scale] = initializer(scale, encoding.scale)
        if encoding.zero_point is None:
            self.tensors[zero] = initializer(zero, np.zeros(encoding.scale.shape, dtype))
            return [scale, zero]
        if dtype == np.int32:
            if encoding.zero_point.any():
                raise UnsupportedError(f"tensor {name!r}: ONNX int32 codes have no zero point")
            return [scale]
        self.tensors[zero] = initializer(zero, encoding.zero_point.astype(dtype))
        return [scale, zero]

    def _clipped(self, source: str, name: str, encoding: Encoding) -> str:
        """The tensor clipped to the grid's ends, where its ONNX type has more codes."""
        if not isinstance(encoding.format, Integer):
            return source
        dtype = _dtype(name, encoding.format, self.opset)
        info = ml_dtypes.iinfo(dtype)
        low, high = encoding.format.limits
        if (info.min, info.max) == (low, high):
            return source
        if encoding.scale is None or encoding.scale.size != 1:
            raise UnsupportedError(
                f"tensor {name!r}: ONNX has no type for {encoding.format.name} activations with "
                f"several scales"
            )
        ends = encoding.dequantize(np.asarray([low, high]).reshape(2, *encoding.scale.shape))
        bounds = [f"{name}_low", f"{name}_high"]
        for bound, end in zip(bounds, ends.reshape(-1), strict=True):
            self.tensors[bound] = initializer(bound, np.float32(end))
        self._node("Clip", [source, *bounds], f"{name}_Clip_Output", {})
        return f"{name}_Clip_Output"

    def _casts(self, source: str, name: str, result: str, fmt: Minifloat) -> None:
        dtype, _ = _minifloat(name, fmt)
        middle = f"{name}_{fmt.name}"
        to = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        self._node("Cast", [source], middle, {"to": to})
        self._node("Cast", [middle], result, {"to": int(onnx.TensorProto.FLOAT)})

    def _node(self, op: str, inputs: list[str], output: str, attrs: Mapping[str, Any]) -> None:
        name = f"{output}/{op}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attrs))


def _attributes(encoding: Encoding) -> dict[str, int]:
    if encoding.granularity.axis is None or encoding.scale is None or not encoding.scale.ndim:
        return {}
    axis, block = encoding.granularity.axis, encoding.granularity.block
    assert isinstance(axis, int) and not isinstance(block, tuple)  # refused at the door
    attrs = {"axis": axis}
    if block is not None:
        attrs["block_size"] = block
    return attrs


def _needed(name: str, encoding: Encoding, opset: int | None) -> int:
    """The first opset that holds an encoding; UnsupportedError where `opset` is lower."""
    if isinstance(encoding.format, Minifloat):
        needed = 13 if encoding.format == FP32 else _minifloat(name, encoding.format)[1]
        if encoding.scale is not None and needed == 13:
            raise UnsupportedError(f"tensor {name!r}: ONNX has no scaled {encoding.format.name}")
    else:
        assert isinstance(encoding.format, Integer)
        dtype = _dtype(name, encoding.format, 21 if opset is None else opset)
        needed = 13 if dtype in (np.int8, np.uint8, np.int32) else 21
        needed = 21 if encoding.granularity.block is not None else needed
    if opset is not None and needed > opset:
        raise UnsupportedError(
            f"tensor {name!r}: {encoding.format.name}"
            f"{' in blocks' if encoding.granularity.block else ''} needs ONNX opset {needed}, "
            f"not {opset}"
        )
    return needed


def _stored(name: str, encoding: Encoding, opset: int) -> np.dtype:
    """The ONNX type of codes, of integers or of a minifloat with a scale."""
    if isinstance(encoding.format, Minifloat):
        return np.dtype(_minifloat(name, encoding.format)[0])
    assert isinstance(encoding.format, Integer)
    return _dtype(name, encoding.format, opset)


def _dtype(name: str, fmt: Integer, opset: int) -> np.dtype:
    """The ONNX type that holds the codes of an integer format."""
    if fmt.bits > 16 and not fmt.signed:
        raise UnsupportedError(f"tensor {name!r}: ONNX has no quantized type for {fmt.name}")
    sign = "" if fmt.signed else "u"
    if fmt.bits <= 4 and opset >= 21:
        return np.dtype(getattr(ml_dtypes, f"{sign}int4"))
    width = next(w for w in (8, 16, 32) if fmt.bits <= w)
    return np.dtype(f"{sign}int{width}")


def _minifloat(name: str, fmt: Minifloat) -> tuple[Any, int]:
    if fmt.name not in _MINIFLOATS:
        raise UnsupportedError(
            f"tensor {name!r}: ONNX has no type {fmt.name}{nearest(fmt.name, _MINIFLOATS)}"
        )
    return _MINIFLOATS[fmt.name]


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model rewritten for a newer opset, by onnx's own converter."""
    own = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
    if own == opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        # The converter reports through several kinds, RuntimeError among them.
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"the graph cannot be raised to opset {opset}: {text}") from error


def _rewire(node: onnx.NodeProto, reads: Mapping[str, str]) -> None:
    """Renames what a node reads, and what its bodies read of the tensors around it."""
    node.input[:] = [reads.get(name, name) for name in node.input]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rewire(inner, reads)
        for output in attribute.g.output:
            output.name = reads.get(output.name, output.name)


def _in_order(nodes: list[onnx.NodeProto], known: list[str]) -> list[onnx.NodeProto]:
    """The nodes in topological order, otherwise as they come."""
    made = {name for node in nodes for name in node.output}
    done = {"", *known}
    waiting: dict[str, list[int]] = {}
    missing: list[int] = []
    ready, order = [], []
    for i, node in enumerate(nodes):
        needs = {name for name in _reads(node) if name in made and name not in done}
        missing.append(len(needs))
        for name in needs:
            waiting.setdefault(name, []).append(i)
        if not needs:
            ready.append(i)
    ready.reverse()
    while ready:
        node = nodes[ready.pop()]
        order.append(node)
        for name in node.output:
            for i in reversed(waiting.get(name, ())):
                missing[i] -= 1
                if not missing[i]:
                    ready.append(i)
    return order


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _reads(inner)
    return names
