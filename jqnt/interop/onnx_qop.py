"""QOperator ONNX: integer tensors between QLinear operators, as onnxruntime's kernels run them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node
from jqnt.integer.arithmetic import arithmetic_named
from jqnt.integer.group import Group, Site, clamp, per_tensor
from jqnt.integer.kernel_pool import keeps_axes, mean_axes
from jqnt.integer.operands import Operands
from jqnt.integer.partition import Move, partition
from jqnt.interop.to_onnx import initializer, model_of, node_proto, to_onnx

__all__ = ["to_qoperator"]

_MS = "com.microsoft"


def to_qoperator(graph: Graph, params: Mapping[str, Any], encodings: Encodings) -> onnx.ModelProto:
    """A model of integer operators that computes what the "onnxruntime" arithmetic emulates.

    The codes of tensor t are the tensor `t_quantized`; t itself exists in float where a float
    operator or the caller reads it. A ReduceMean over the spatial axes is a global pool, over
    others one of rows, since onnxruntime has no kernel for QLinearReduceMean; Slice, Pad and their
    like work on the codes, padding with the zero point. Fused clamps that the output type does not
    do follow on the codes. Weights of fewer than 8 bits are int8 codes.

    Raises UnsupportedError, naming the nodes, for what these operators do not take: activations
    of other than 8 bits or of both signs at one operator, block-wise weights.
    """
    operands = Operands(graph, params, encodings)
    site, steps = partition(operands, arithmetic_named("onnxruntime"))
    writer = _Writer(site)
    for name in graph.inputs:
        if name in site.grids:
            writer.quantize(name)
    for step in steps:
        match step:
            case Group():
                _GROUPS.get(step.head.op, _between_floats)(step, writer)
            case Move():
                _move(step.node, writer)
            case _:
                _float(step, writer)
    for name in graph.outputs:
        writer.float_of(name)
    if graph.opsets.get("", 1) < 13:
        raise UnsupportedError(
            f"graph {graph.name!r} is of opset {graph.opsets.get('', 1)}; QOperator models need 13"
        )
    tensors = list(writer.tensors.values())
    model = model_of(graph, writer.nodes, tensors, {**graph.opsets, _MS: 1})
    del model.graph.output[:]
    model.graph.output.extend(to_onnx(graph, params).graph.output)
    onnx.checker.check_model(model)
    return model


@dataclass(frozen=True, eq=False)
class _Writer:
    """Nodes and initializers as they come; each tensor is written once."""

    site: Site
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    floats: set[str] = field(default_factory=set)

    def constant(self, name: str, value: Any) -> str:
        """An initializer of that name."""
        if name not in self.tensors:
            self.tensors[name] = initializer(name, np.asarray(value))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any):
        """Appends a node."""
        name = f"{outputs[0]}_{op}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attrs))

    def grid(self, name: str, encoding: Encoding | None = None) -> list[str]:
        """The names of a tensor's scale and zero point."""
        encoding = encoding or self.site.grids[name]
        scale, zero_point = per_tensor(encoding, f"tensor {name!r}")
        return [
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero_point", np.asarray(zero_point, _type(encoding, name))),
        ]

    def codes(self, name: str) -> list[str]:
        """[codes, scale, zero point] of an integer activation, or of a static operand."""
        if name in self.site.grids:
            return [f"{name}_quantized", *self.grid(name)]
        coded, encoding = self.site.operands.coded(name), self.site.operands.encodings[name]
        assert coded is not None
        code = self.constant(f"{name}_quantized", coded.codes.astype(_type(encoding, name)))
        return [code, *self.grid(name, encoding)]

    def quantize(self, name: str, source: str | None = None) -> None:
        """codes of `name` from its float tensor."""
        self.node("QuantizeLinear", [source or name, *self.grid(name)], [f"{name}_quantized"])

    def float_of(self, name: str) -> str:
        """A tensor in float: dequantized, or a static one on its grid."""
        if name in self.floats or not name:
            return name
        if name in self.site.grids:
            if name in self.site.operands.graph.inputs:
                dequantized = f"{name}_dequantized"
                if dequantized not in self.floats:
                    self.node("DequantizeLinear", self.codes(name), [dequantized])
                    self.floats.add(dequantized)
                return dequantized
            self.node("DequantizeLinear", self.codes(name), [name])
            self.floats.add(name)
        elif name in self.site.operands.static:
            self.constant(name, self.site.operands.value(name))
        return name


def _type(encoding: Encoding, name: str) -> np.dtype:
    fmt = encoding.format
    if not isinstance(fmt, Integer) or fmt.bits != 8 or fmt.strict:
        raise UnsupportedError(
            f"tensor {name!r}: QOperator models hold activations of 8 bits, not {fmt.name}"
        )
    return np.dtype(fmt.name)


def _weight(group: Group, writer: _Writer, axis: int) -> list[str]:
    """[codes, scale, zero point] of a weight as int8 (uint8 where its codes need it)."""
    name = group.head.inputs[1]
    weight = writer.site.operands.coded(name)
    assert weight is not None
    scale = weight.per_channel(axis, writer.site.where(group))
    zero = np.moveaxis(weight.zero_point, axis, 0).reshape(len(scale), -1)[:, 0]
    dtype = np.dtype("int8" if weight.codes.min() < 0 or weight.codes.max() < 128 else "uint8")
    if max(weight.codes.max(), zero.max()) > np.iinfo(dtype).max:
        raise UnsupportedError(f"weight {name!r}: {weight.format.name} codes do not fit 8 bits")
    one = (scale == scale[0]).all() and (zero == zero[0]).all()
    scale, zero = (scale[0], zero[0]) if one else (scale, zero)
    return [
        writer.constant(f"{name}_quantized", weight.codes.astype(dtype)),
        writer.constant(f"{name}_scale", np.asarray(scale, np.float32)),
        writer.constant(f"{name}_zero_point", np.asarray(zero, dtype)),
    ]


def _bias(group: Group, writer: _Writer, axis: int, alpha: float = 1.0) -> list[str]:
    data, kernel, *rest = group.head.inputs
    name = rest[0] if rest else ""
    if not name:
        return []
    site = writer.site
    weight = site.operands.coded(kernel)
    assert weight is not None
    sx, _ = per_tensor(site.grids[data], site.where(group))
    scale = np.float32(alpha) * sx * weight.per_channel(axis, site.where(group))
    limit = np.iinfo(np.int32)
    codes = np.clip(site.operands.bias_codes(name, scale), limit.min, limit.max)
    return [writer.constant(f"{name}_quantized", codes.astype(np.int32))]


def _emit(
    group: Group,
    writer: _Writer,
    op: str,
    inputs: list[str],
    attrs: Mapping[str, Any],
    domain: str = _MS,
) -> None:
    """The head as one operator, then the fused clamp where the output type does not do it."""
    writer.node(op, inputs, [_made(group, writer)], domain, **attrs)
    _clamped(group, writer)


def _made(group: Group, writer: _Writer) -> str:
    """Where the head's codes go: to the group's output, unless a clamp must follow."""
    grid, y = clamp(group, writer.site), writer.site.grids[group.output]
    assert isinstance(y.format, Integer)
    free = (grid["low"] <= y.format.limits[0]).all() and (grid["high"] >= y.format.limits[1]).all()
    return f"{group.output}_quantized" if free else f"{group.output}_unclamped"


def _clamped(group: Group, writer: _Writer) -> None:
    """The clamp behind the head, where the output type does not do it."""
    target, made = f"{group.output}_quantized", _made(group, writer)
    if made == target:
        return
    y, grid = writer.site.grids[group.output], clamp(group, writer.site)
    low, high = grid["low"], grid["high"]
    if low.ndim == high.ndim == 0:
        dtype = _type(y, group.output)
        bounds = {"low": low.astype(dtype), "high": high.astype(dtype)}
        names = [writer.constant(f"{group.output}_{k}", v) for k, v in bounds.items()]
        writer.node("Clip", [made, *names], [target])
        return
    wide, above, within = (f"{group.output}_{k}" for k in ("int32", "above", "within"))
    writer.node("Cast", [made], [wide], to=int(onnx.TensorProto.INT32))
    writer.node("Max", [wide, writer.constant(f"{group.output}_low", low)], [above])
    writer.node("Min", [above, writer.constant(f"{group.output}_high", high)], [within])
    element = int(helper.np_dtype_to_tensor_dtype(_type(y, group.output)))
    writer.node("Cast", [within], [target], to=element)


def _conv(group: Group, writer: _Writer) -> None:
    node = group.head
    inputs = [*writer.codes(node.inputs[0]), *_weight(group, writer, 0), *writer.grid(group.output)]
    _emit(group, writer, "QLinearConv", [*inputs, *_bias(group, writer, 0)], node.attrs, "")


def _gemm(group: Group, writer: _Writer) -> None:
    node = group.head
    axis = 0 if node.attrs.get("transB", 0) else 1
    bias = _bias(group, writer, axis, node.attrs.get("alpha", 1.0)) or [""]
    inputs = [*writer.codes(node.inputs[0]), *_weight(group, writer, axis), *bias]
    attrs = {k: v for k, v in node.attrs.items() if k in ("alpha", "transA", "transB")}
    _emit(group, writer, "QGemm", [*inputs, *writer.grid(group.output)], attrs)


def _matmul(group: Group, writer: _Writer) -> None:
    left, right = group.head.inputs
    second = writer.codes(right) if right in writer.site.grids else _weight(group, writer, 1)
    inputs = [*writer.codes(left), *second]
    _emit(group, writer, "QLinearMatMul", [*inputs, *writer.grid(group.output)], {}, "")


def _pair(op: str) -> Callable[[Group, _Writer], None]:
    def write(group: Group, writer: _Writer) -> None:
        a, b = (writer.codes(name) for name in group.head.inputs)
        _emit(group, writer, op, [*a, *b, *writer.grid(group.output)], {})

    return write


def _unary(op: str) -> Callable[[Group, _Writer], None]:
    def write(group: Group, writer: _Writer) -> None:
        inputs = [*writer.codes(group.head.inputs[0]), *writer.grid(group.output)]
        _emit(group, writer, op, inputs, group.head.attrs)

    return write


def _mean(group: Group, writer: _Writer) -> None:
    """A global pool; where the axes are not all spatial ones, of rows (kept, 1, reduced)."""
    node, name = group.head, group.output
    codes, *grid = writer.codes(node.inputs[0])
    rank = len(writer.site.operands.shapes[node.inputs[0]])
    axes, keep = mean_axes(node, writer.site, rank), keeps_axes(node)
    kept = [a for a in range(rank) if a not in axes]
    removed = writer.constant(f"{name}_axes", np.asarray(axes, np.int64))
    pooled, made, rows = f"{name}_pooled", _made(group, writer), codes
    spatial = rank > 2 and axes == tuple(range(2, rank))
    if not spatial:
        turned, flat, rows = (f"{name}_{k}" for k in ("turned", "flat", "rows"))
        one = writer.constant(f"{name}_one", np.asarray([1], np.int64))
        writer.node("Transpose", [codes], [turned], perm=[*kept, *axes])
        writer.node("Flatten", [turned], [flat], axis=len(kept))
        writer.node("Unsqueeze", [flat, one], [rows])
    output = made if spatial and keep else pooled
    inputs = [rows, *grid, *writer.grid(name)]
    writer.node("QLinearGlobalAveragePool", inputs, [output], _MS, channels_last=0)
    if spatial and not keep:
        writer.node("Squeeze", [pooled, removed], [made])
    elif not spatial:
        sizes, left, vector = (f"{name}_{k}" for k in ("sizes", "left", "vector"))
        writer.node("Shape", [codes], [sizes])
        places = writer.constant(f"{name}_kept", np.asarray(kept, np.int64))
        writer.node("Gather", [sizes, places], [left])
        writer.node("Reshape", [pooled, left], [vector if keep else made])
        if keep:
            writer.node("Unsqueeze", [vector, removed], [made])
    _clamped(group, writer)


def _softmax(group: Group, writer: _Writer) -> None:
    node = group.head
    attrs = {"opset": node.since, "axis": node.attrs.get("axis", -1 if node.since >= 13 else 1)}
    inputs = [*writer.codes(node.inputs[0]), *writer.grid(group.output)]
    _emit(group, writer, "QLinearSoftmax", inputs, attrs)


def _concat(group: Group, writer: _Writer) -> None:
    parts = [part for name in group.head.inputs for part in writer.codes(name)]
    _emit(group, writer, "QLinearConcat", [*writer.grid(group.output), *parts], group.head.attrs)


def _between_floats(group: Group, writer: _Writer) -> None:
    """Kernels that onnxruntime has no integer operator for: dequantize, compute, quantize."""
    for node in group.nodes:
        for name in node.inputs:
            writer.float_of(name)
    outputs = {group.output: f"{group.output}_exact"}
    for node in group.nodes:
        renamed = tuple(outputs.get(o, o) for o in node.outputs)
        reads = tuple(writer.float_of(n) for n in node.inputs)
        writer.floats.update(renamed)
        writer.nodes.append(node_proto(node.replace(inputs=reads, outputs=renamed)))
    writer.quantize(group.output, outputs[group.output])


def _move(node: Node, writer: _Writer) -> None:
    x = node.inputs[0]
    source, _, zero = writer.codes(x)
    rest = [writer.constant(n, writer.site.operands.value(n)) if n else "" for n in node.inputs[1:]]
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
        rest = [rest[0], zero, *rest[2:]]
    outputs = []
    for name in node.outputs:
        same = not name or writer.site.grids[name].same_grid(writer.site.grids[x])
        outputs.append(f"{name}_quantized" if same and name else f"{name}_moved" if name else "")
    writer.nodes.append(node_proto(node.replace(inputs=(source, *rest), outputs=tuple(outputs))))
    for name, made in zip(node.outputs, outputs, strict=True):
        if made.endswith("_moved"):
            real = f"{name}_exact"
            writer.node("DequantizeLinear", [made, *writer.grid(x)], [real])
            writer.quantize(name, real)


def _float(node: Node, writer: _Writer) -> None:
    """A node in float; the results that have a grid are quantized."""
    grids, encodings = writer.site.grids, writer.site.operands.encodings
    reads = tuple(writer.float_of(n) for n in node.inputs)
    outputs = []
    for name in node.outputs:
        if name and name not in grids and name in encodings:
            raise UnsupportedError(
                f"tensor {name!r}: QOperator models hold {encodings[name].format.name} nowhere"
            )
        outputs.append(f"{name}_exact" if name in grids else name)
    writer.nodes.append(node_proto(node.replace(inputs=reads, outputs=tuple(outputs))))
    writer.floats.update(o for o in outputs if o)
    for name in node.outputs:
        if name in grids:
            writer.quantize(name, f"{name}_exact")


_GROUPS: Mapping[str, Callable[[Group, _Writer], None]] = {
    "Add": _pair("QLinearAdd"),
    "AveragePool": _unary("QLinearAveragePool"),
    "Concat": _concat,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "LeakyRelu": _unary("QLinearLeakyRelu"),
    "MatMul": _matmul,
    "Mul": _pair("QLinearMul"),
    "ReduceMean": _mean,
    "Sigmoid": _unary("QLinearSigmoid"),
    "Softmax": _softmax,
}
