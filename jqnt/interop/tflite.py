"""int8 .tflite models from a graph and its encodings: the layers that LiteRT runs on integers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node
from jqnt.graph.shapes import infer_shapes
from jqnt.integer.arithmetic import arithmetic_named
from jqnt.integer.group import Group, Site, clamp, per_tensor
from jqnt.integer.kernel_pool import keeps_axes, mean_axes
from jqnt.integer.kernel_resize import coordinates, image_axes
from jqnt.integer.operands import Operands
from jqnt.integer.partition import Move, partition
from jqnt.interop.flatbuffer import Scalar, Table, Vector, dump
from jqnt.ops.window import window

__all__ = ["to_tflite"]

_INT32, _INT8 = 2, 9
_CODES = {"ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3,
          "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 9, "MUL": 18, "RESHAPE": 22,
          "RESIZE_BILINEAR": 23, "PAD": 34, "MEAN": 40, "QUANTIZE": 114}  # fmt: skip
_RELU, _RELU6 = 1, 3


def to_tflite(
    graph: Graph, params: Mapping[str, Any], encodings: Encodings, *, batch: int = 1
) -> bytes:
    """A model whose inputs and outputs are int8 codes, images channels-last.

    uint8 grids become the int8 grids of the same reals. Weights are int8, symmetric, one scale
    per output channel or one; biases int32. Fused clamps are RELU and RELU6, or those that the
    output grid does by itself.

    Raises UnsupportedError, naming the node, for what TFLite's int8 kernels do not take.
    """
    operands = Operands(graph, params, encodings)
    site, steps = partition(operands, arithmetic_named("tflite-reference"))
    shapes = {n: tuple(s.shape) for n, s in infer_shapes(graph, params, batch).items()}
    writer = _Writer(site, shapes)
    inputs = [writer.activation(name) for name in graph.inputs]
    for step in steps:
        node = (
            step.head if isinstance(step, Group) else step.node if isinstance(step, Move) else step
        )
        write = _GROUPS.get(node.op) if isinstance(step, Group) else _MOVES.get(node.op)
        if write is None or isinstance(step, Node):
            raise UnsupportedError(f"{node.op} node {node.name!r} has no int8 kernel in TFLite")
        write(step, writer)
    outputs = [writer.activation(name) for name in graph.outputs]
    subgraph = Table(
        {
            0: Vector("", writer.tensors),
            1: Vector("i", inputs),
            2: Vector("i", outputs),
            3: Vector("", writer.operators),
            4: graph.name,
        }
    )
    codes = [
        Table(
            {
                0: Scalar("b", min(_CODES[op], 127)),
                2: Scalar("i", version),
                3: Scalar("i", _CODES[op]),
            }
        )
        for op, version in writer.codes
    ]
    model = {
        0: Scalar("I", 3),
        1: Vector("", codes),
        2: Vector("", [subgraph]),
        3: "jqnt",
        4: Vector("", writer.buffers),
    }
    return dump(Table(model), b"TFL3")


@dataclass(frozen=True, eq=False)
class _Writer:
    """The lists of a model as they fill up; tensor 0's buffer is the empty one."""

    site: Site
    shapes: Mapping[str, tuple[int, ...]]
    tensors: list[Table] = field(default_factory=list)
    operators: list[Table] = field(default_factory=list)
    codes: list[tuple[str, int]] = field(default_factory=list)
    buffers: list[Table] = field(default_factory=lambda: [Table({})])
    known: dict[str, int] = field(default_factory=dict)

    def activation(self, name: str) -> int:
        """The index of an integer tensor."""
        if name not in self.known:
            if name not in self.site.grids:
                raise UnsupportedError(f"tensor {name!r} is in float; TFLite files here are int8")
            scale, zero_point = _int8_grid(self.site.grids[name], name)
            shape = _last(self.shapes[name])
            self.known[name] = self._tensor(name, shape, _INT8, 0, [scale], [zero_point], 0)
        return self.known[name]

    def intermediate(self, name: str, shape: Sequence[int], like: str) -> int:
        """A tensor that the graph does not have, on the grid of another."""
        scale, zero_point = _int8_grid(self.site.grids[like], like)
        return self._tensor(name, shape, _INT8, 0, [scale], [zero_point], 0)

    def constant(
        self, name: str, value: np.ndarray, scales: Sequence[float] = (), axis: int = 0
    ) -> int:
        """A tensor with content."""
        self.buffers.append(Table({0: Vector("B", value.tobytes(), 16)}))
        kind = _INT8 if value.dtype == np.int8 else _INT32
        zeros = [0] * len(scales)
        return self._tensor(name, value.shape, kind, len(self.buffers) - 1, scales, zeros, axis)

    def operator(
        self, op: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None,
        version: int = 1,
    ) -> None:  # fmt: skip
        """Appends an operator; `options` is (union type, table fields)."""
        if (op, version) not in self.codes:
            self.codes.append((op, version))
        fields: dict[int, Any] = {
            0: Scalar("I", self.codes.index((op, version))),
            1: Vector("i", list(inputs)),
            2: Vector("i", list(outputs)),
        }
        if options is not None:
            fields |= {3: Scalar("B", options[0]), 4: Table(options[1])}
        self.operators.append(Table(fields))

    def _tensor(self, name, shape, kind, buffer, scales, zeros, axis) -> int:
        fields: dict[int, Any] = {
            0: Vector("i", [int(n) for n in shape]),
            1: Scalar("b", kind),
            2: Scalar("I", buffer),
            3: name,
        }
        if len(scales):
            grid = {2: Vector("f", [float(s) for s in scales]), 3: Vector("q", list(zeros), 8)}
            fields[4] = Table({**grid, 6: Scalar("i", axis)})
        self.tensors.append(Table(fields))
        return len(self.tensors) - 1


def _int8_grid(encoding: Encoding, name: str) -> tuple[float, int]:
    scale, zero_point = per_tensor(encoding, f"tensor {name!r}")
    fmt = encoding.format
    if not isinstance(fmt, Integer) or fmt.bits != 8:
        raise UnsupportedError(f"tensor {name!r}: TFLite int8 kernels do not take {fmt.name}")
    return float(scale), zero_point - (0 if fmt.signed else 128)


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """Channels-last where there are images."""
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else tuple(shape)


def _activation(group: Group, writer: _Writer) -> int:
    """The fused activation: what the clamp of the group is."""
    grid = writer.site.grids[group.output]
    scale, zero_point = per_tensor(grid, writer.site.where(group))
    bounds = clamp(group, writer.site)
    assert isinstance(grid.format, Integer)
    qmin, qmax = grid.format.limits
    low, high = bounds["low"], bounds["high"]
    if (low == qmin).all() and (high == qmax).all():
        return 0
    six = min(round(float(np.rint(np.float32(6) / scale))) + zero_point, qmax)
    if (low == max(zero_point, qmin)).all():
        if (high == qmax).all():
            return _RELU
        if (high == six).all():
            return _RELU6
    raise UnsupportedError(f"{writer.site.where(group)}: TFLite fuses RELU and RELU6 only")


def _conv(group: Group, writer: _Writer) -> None:
    node, site = group.head, writer.site
    weight = site.operands.coded(node.inputs[1])
    assert weight is not None
    where, groups = site.where(group), node.attrs.get("group", 1)
    codes = _symmetric(weight.centred, where)
    if codes.ndim != 4 or (groups > 1 and codes.shape[1] != 1):
        raise UnsupportedError(f"{where}: TFLite has 2-D convolutions, full or depthwise")
    scales, axis = _weight_scales(weight.per_channel(0, where)), 0
    view = window(node, writer.shapes[node.inputs[0]][2:], codes.shape[2:])
    name = node.inputs[1]
    depthwise = groups > 1
    if depthwise:
        codes, axis = codes[:, 0].transpose(1, 2, 0)[None], 3
    else:
        codes = codes.transpose(0, 2, 3, 1)
    source, same = _padded(group, writer, view)
    options: dict[int, Any] = {
        0: Scalar("b", 0 if same else 1),
        1: Scalar("i", view.strides[1]),
        2: Scalar("i", view.strides[0]),
    }
    tail = [
        Scalar("b", _activation(group, writer)),
        *(Scalar("i", d) for d in view.dilations[::-1]),
    ]
    if depthwise:
        tail.insert(0, Scalar("i", codes.shape[3] // groups))
    options |= dict(enumerate(tail, start=3))
    inputs = [source, writer.constant(name, codes, scales, axis)]
    inputs.append(_bias(group, writer, weight.per_channel(0, where)))
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    union = 2 if depthwise else 1
    writer.operator(op, inputs, [writer.activation(group.output)], (union, options), 3)


def _padded(group: Group, writer: _Writer, view: Any) -> tuple[int, bool]:
    """(the data tensor, whether SAME does the padding); a PAD goes before for other borders."""
    name = group.head.inputs[0]
    source = writer.activation(name)
    if not any(map(sum, view.pads)):
        return source, False
    sizes = writer.shapes[name][2:]
    same = []
    for size, k, s, d in zip(sizes, view.kernel, view.strides, view.dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        same.append((total // 2, total - total // 2))
    if tuple(same) == tuple(view.pads):
        return source, True
    shape = _last(writer.shapes[name])
    pads = ((0, 0), *view.pads, (0, 0))
    wider = [n + sum(p) for n, p in zip(shape, pads, strict=True)]
    result = writer.intermediate(f"{group.output}/padded", wider, name)
    amounts = writer.constant(f"{group.output}/pads", np.asarray(pads, np.int32))
    writer.operator("PAD", [source, amounts], [result], (22, {}), 2)
    return result, False


def _bias(group: Group, writer: _Writer, scale: np.ndarray) -> int:
    site = writer.site
    data, _, *rest = group.head.inputs
    name = rest[0] if rest and rest[0] else None
    sx, _ = per_tensor(site.grids[data], site.where(group))
    product = sx * scale
    codes = site.operands.bias_codes(name, product).astype(np.int32)
    label = name or f"{group.output}/bias"
    return writer.constant(label, codes, _weight_scales(product))


def _symmetric(codes: np.ndarray, where: str) -> np.ndarray:
    if np.abs(codes).max(initial=0) > 127 and codes.min() < -128:
        raise UnsupportedError(f"{where}: weights do not fit int8")
    return codes.astype(np.int8)


def _weight_scales(scales: np.ndarray) -> list[float]:
    return [float(scales[0])] if (scales == scales[0]).all() else [float(s) for s in scales]


def _gemm(group: Group, writer: _Writer) -> None:
    node, site = group.head, writer.site
    weight = site.operands.coded(node.inputs[1])
    assert weight is not None
    where = site.where(group)
    if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1:
        raise UnsupportedError(f"{where}: TFLite has no transposed or scaled input")
    rows = 0 if node.attrs.get("transB", 0) else 1
    codes = _symmetric(weight.centred if rows == 0 else weight.centred.T, where)
    scale = weight.per_channel(rows, where)
    inputs = [
        writer.activation(node.inputs[0]),
        writer.constant(node.inputs[1], np.ascontiguousarray(codes), _weight_scales(scale)),
        _bias(group, writer, scale),
    ]
    options = (8, {0: Scalar("b", _activation(group, writer))})
    writer.operator("FULLY_CONNECTED", inputs, [writer.activation(group.output)], options, 4)


def _pair(op: str, union: int) -> Callable[[Any, _Writer], None]:
    def write(group: Group, writer: _Writer) -> None:
        inputs = [writer.activation(name) for name in group.head.inputs]
        options = (union, {0: Scalar("b", _activation(group, writer))})
        writer.operator(op, inputs, [writer.activation(group.output)], options, 2)

    return write


def _mean(group: Group, writer: _Writer) -> None:
    node = group.head
    if _activation(group, writer):
        raise UnsupportedError(f"{writer.site.where(group)}: TFLite's MEAN fuses no clamp")
    rank, keep = len(writer.shapes[node.inputs[0]]), keeps_axes(node)
    axes = mean_axes(node, writer.site, rank)
    order = _last(range(rank))
    left = [a for a in order if a not in axes]
    if not keep and list(_last(sorted(left))) != left:
        raise UnsupportedError(
            f"{writer.site.where(group)}: without the axes {axes} of an image the rest is in "
            f"another order in TFLite's layout; keep the dimensions"
        )
    placed = np.asarray(sorted(order.index(a) for a in axes), np.int32)
    inputs = [writer.activation(node.inputs[0]), writer.constant(f"{group.output}/axes", placed)]
    options = (27, {0: Scalar("?", keep)})
    writer.operator("MEAN", inputs, [writer.activation(group.output)], options, 2)


def _resize(group: Group, writer: _Writer) -> None:
    name = group.head.inputs[0]
    rows, columns = image_axes(group, writer.site, writer.shapes[name])
    sizes = writer.constant(f"{group.output}/size", np.asarray([rows.out, columns.out], np.int32))
    mode = coordinates(group, writer.site)
    flags = {2: Scalar("?", mode == "align_corners"), 3: Scalar("?", mode == "half_pixel")}
    inputs = [writer.activation(name), sizes]
    writer.operator("RESIZE_BILINEAR", inputs, [writer.activation(group.output)], (15, flags), 3)


def _reshape(step: Move, writer: _Writer) -> None:
    """Flattening an image is free only where it has one pixel: TFLite's order is another."""
    x, *_ = step.node.inputs
    y, *_ = step.node.outputs
    shape = writer.shapes[x]
    if len(shape) == 4 and shape[2] * shape[3] > 1:
        raise UnsupportedError(
            f"{step.node.op} node {step.node.name!r}: reshaping images changes the order of their "
            f"values in TFLite's layout"
        )
    target = writer.constant(f"{y}/shape", np.asarray(_last(writer.shapes[y]), np.int32))
    writer.operator("RESHAPE", [writer.activation(x), target], [writer.activation(y)], (17, {}))


def _rescale(group: Group, writer: _Writer) -> None:
    if _activation(group, writer):
        raise UnsupportedError(f"{writer.site.where(group)}: TFLite's QUANTIZE fuses no clamp")
    inputs = [writer.activation(group.head.inputs[0])]
    writer.operator("QUANTIZE", inputs, [writer.activation(group.output)], (94, {}), 2)


_GROUPS: Mapping[str, Callable[[Any, _Writer], None]] = {
    "Add": _pair("ADD", 11),
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Mul": _pair("MUL", 21),
    "ReduceMean": _mean,
    "Relu": _rescale,
    "Resize": _resize,
}
_MOVES: Mapping[str, Callable[[Any, _Writer], None]] = {
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
}
