"""ncnn int8 models and calibration tables from a graph and its encodings, and tables back.

src/layer/{convolution,convolutiondepthwise,innerproduct}.cpp and tools/quantize of
https://github.com/Tencent/ncnn. A layer's int8 products are those of the "ncnn" arithmetic; all
other layers run in float, with conversions where an encoded tensor meets them.
"""

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
from jqnt.integer.operands import Operands
from jqnt.integer.partition import Move, partition
from jqnt.interop.ncnn_model import Layer
from jqnt.ops.window import window

__all__ = ["to_ncnn"]

_FLOAT32, _INT8 = 1, 3
"""ncnn's Cast."""


def to_ncnn(graph: Graph, params: Mapping[str, Any], encodings: Encodings) -> tuple[Layer, ...]:
    """The layers of an int8 model, for `dump_param` and `dump_bin`.

    Encoded tensors are on symmetric grids of -127 to 127. Blobs have the names of the graph's
    tensors; inputs and outputs are float, samples come one at a time, without the batch axis.

    Raises UnsupportedError, naming the node or tensor, for what ncnn's layers do not take.
    """
    operands = Operands(graph, params, encodings)
    site, steps = partition(operands, arithmetic_named("ncnn"))
    for name, grid in site.grids.items():
        _check_grid(name, grid)
    writer = _Writer(site, {n: tuple(s.shape) for n, s in infer_shapes(graph, params).items()})
    for name in graph.inputs:
        writer.layer("Input", [], writer.made(name), {})
        writer.settle(name)
    for step in steps:
        if isinstance(step, Group):
            _PRODUCTS[step.head.op](step, writer)
        else:
            _float(step.node if isinstance(step, Move) else step, writer)
    names = {n: f"{n}_codes" for n in (*graph.inputs, *graph.outputs) if n in site.grids}
    names |= {writer.made(n): n for n in graph.inputs if n in site.grids}
    names |= {writer.float_of(n): n for n in graph.outputs if n in site.grids}
    return tuple(_split([_renamed(layer, names) for layer in writer.layers]))


def _check_grid(name: str, grid: Encoding) -> None:
    _, zero_point = per_tensor(grid, f"tensor {name!r}")
    fmt = grid.format
    if not isinstance(fmt, Integer) or fmt.limits != (-127, 127) or zero_point:
        raise UnsupportedError(
            f"tensor {name!r}: ncnn's int8 grids are symmetric, -127 to 127; plan with "
            f"target 'ncnn'"
        )


@dataclass(frozen=True, eq=False)
class _Writer:
    """The layers as they come; `real` holds the encoded tensors that exist in float too."""

    site: Site
    shapes: Mapping[str, tuple[int, ...]]
    layers: list[Layer] = field(default_factory=list)
    real: set[str] = field(default_factory=set)

    def layer(self, kind: str, inputs: Sequence[str], output: str, params: Mapping[int, Any],
              arrays: Sequence[np.ndarray] = ()) -> None:  # fmt: skip
        """Appends a layer with one output, named after it."""
        name = _word(output)
        self.layers.append(
            Layer(kind, name, tuple(map(_word, inputs)), (name,), params, tuple(arrays))
        )

    def quantize(self, name: str, source: str) -> None:
        """The codes of an encoded tensor from its floats."""
        scale, _ = per_tensor(self.site.grids[name], name)
        self.layer("Quantize", [source], name, {0: 1}, [_one(np.float32(1) / scale)])

    def float_of(self, name: str) -> str:
        """The blob that holds a tensor in float."""
        if name not in self.site.grids:
            return name
        if name not in self.real:
            scale, _ = per_tensor(self.site.grids[name], name)
            # ncnn's Dequantize takes int32 sums, so codes become floats by a Cast and a product.
            self.layer("Cast", [name], f"{name}_float", {0: _INT8, 1: _FLOAT32})
            self.layer("BinaryOp", [f"{name}_float"], f"{name}_real", {0: 2, 1: 1, 2: float(scale)})
            self.real.add(name)
        return f"{name}_real"

    def made(self, name: str) -> str:
        """Where a float layer writes a tensor: `settle` puts it onto its grid."""
        return f"{name}_raw" if name in self.site.grids else name

    def settle(self, name: str) -> None:
        """After `made`: the codes of an encoded tensor; all readers see the value on the grid."""
        if name in self.site.grids:
            self.quantize(name, self.made(name))


def _one(value: Any) -> np.ndarray:
    return np.full(1, value, np.float32)


def _word(name: str) -> str:
    """ncnn separates by spaces."""
    return "_".join(name.split())


def _renamed(layer: Layer, names: Mapping[str, str]) -> Layer:
    new = {_word(a): _word(b) for a, b in names.items()}
    inputs, outputs = (
        tuple(new.get(b, b) for b in blobs) for blobs in (layer.inputs, layer.outputs)
    )
    return Layer(layer.kind, layer.name, inputs, outputs, layer.params, layer.arrays)


def _split(layers: Sequence[Layer]) -> list[Layer]:
    """A Split behind every blob with several readers: ncnn gives a blob away once."""
    uses: dict[str, int] = {}
    for layer in layers:
        for blob in layer.inputs:
            uses[blob] = uses.get(blob, 0) + 1
    taken: dict[str, int] = {}
    found = []
    for layer in layers:
        inputs = []
        for blob in layer.inputs:
            part = taken.get(blob, 0)
            inputs.append(f"{blob}_split{part}" if uses[blob] > 1 else blob)
            taken[blob] = part + 1
        found.append(
            Layer(layer.kind, layer.name, tuple(inputs), layer.outputs, layer.params, layer.arrays)
        )
        for blob in layer.outputs:
            if uses.get(blob, 0) > 1:
                copies = tuple(f"{blob}_split{i}" for i in range(uses[blob]))
                found.append(Layer("Split", f"split_{blob}", (blob,), copies))
    return found


def _activation(group: Group, writer: _Writer) -> int:
    """activation_type: 0 or ReLU, where the grid's ends do not do the clamp already."""
    if group.output not in writer.site.grids:
        return 0
    bounds = clamp(group, writer.site)
    low, high = bounds["low"], bounds["high"]
    if (high == 127).all() and (low == -127).all():
        return 0
    if (high == 127).all() and (low == 0).all():
        return 1
    raise UnsupportedError(f"{writer.site.where(group)}: ncnn's int8 layers fuse ReLU only")


def _weights(group: Group, writer: _Writer, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes as the graph has them, and 1 / scale per output."""
    weight = writer.site.operands.coded(group.head.inputs[1])
    where = writer.site.where(group)
    assert weight is not None
    if np.abs(weight.centred).max(initial=0) > 127:
        raise UnsupportedError(f"{where}: ncnn's int8 weights are -127 to 127")
    return weight.centred.astype(np.int8), np.float32(1) / weight.per_channel(axis, where)


def _bias(group: Group, writer: _Writer, count: int) -> list[np.ndarray]:
    name = group.head.inputs[2] if len(group.head.inputs) > 2 else ""
    if not name:
        return []
    real = writer.site.operands.value(name).reshape(-1).astype(np.float32)
    return [np.ascontiguousarray(np.broadcast_to(real, (count,)))]


def _input_scale(group: Group, writer: _Writer) -> np.ndarray:
    scale, _ = per_tensor(writer.site.grids[group.head.inputs[0]], writer.site.where(group))
    return _one(np.float32(1) / scale)


def _conv(group: Group, writer: _Writer) -> None:
    node, site = group.head, writer.site
    where, groups = site.where(group), node.attrs.get("group", 1)
    codes, inverse = _weights(group, writer, 0)
    if codes.ndim != 4:
        raise UnsupportedError(f"{where}: ncnn's int8 convolutions are 2-D")
    view = window(node, writer.shapes[node.inputs[0]][2:], codes.shape[2:])
    outputs = codes.shape[0]
    bias = _bias(group, writer, outputs)
    (top, bottom), (left, right) = view.pads
    params: dict[int, Any] = {
        0: outputs, 1: view.kernel[1], 11: view.kernel[0], 2: view.dilations[1],
        12: view.dilations[0], 3: view.strides[1], 13: view.strides[0], 4: left, 14: top,
        15: right, 16: bottom, 5: int(bool(bias)), 6: int(codes.size),
    }  # fmt: skip
    term, kind = 2, "Convolution"
    if groups > 1:
        per_group = inverse.reshape(groups, -1)
        if (per_group != per_group[:, :1]).any():
            raise UnsupportedError(f"{where}: ncnn has one weight scale for a group")
        inverse, term, kind = np.ascontiguousarray(per_group[:, 0]), 1, "ConvolutionDepthWise"
        params[7] = groups
    if kind_of := _activation(group, writer):
        params[9] = kind_of
    arrays = [codes.reshape(-1), *bias, inverse, _input_scale(group, writer)]
    if group.output in site.grids:
        scale, _ = per_tensor(site.grids[group.output], where)
        params[8] = term + 100
        arrays.append(_one(np.float32(1) / scale))
    else:
        params[8] = term
    writer.layer(kind, [node.inputs[0]], group.output, params, arrays)


def _dense(group: Group, writer: _Writer) -> None:
    """InnerProduct gives float; what is encoded behind it is quantized."""
    node, where = group.head, writer.site.where(group)
    rows = 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else 1
    if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1:
        raise UnsupportedError(f"{where}: ncnn has no transposed or scaled input")
    codes, inverse = _weights(group, writer, rows)
    codes = np.ascontiguousarray(codes if rows == 0 else codes.T)
    bias = _bias(group, writer, codes.shape[0])
    params: dict[int, Any] = {0: codes.shape[0], 1: int(bool(bias)), 2: int(codes.size), 8: 2}
    if kind := _activation(group, writer):
        params[9] = kind
    arrays = [codes.reshape(-1), *bias, inverse, _input_scale(group, writer)]
    writer.layer("InnerProduct", [node.inputs[0]], writer.made(group.output), params, arrays)
    writer.settle(group.output)


def _float(node: Node, writer: _Writer) -> None:
    if writer.site.operands.static.issuperset(o for o in node.outputs if o):
        return
    write = _FLOATS.get(node.op)
    if write is None or len(node.outputs) != 1:
        raise UnsupportedError(f"{node.op} node {node.name!r} has no layer in ncnn's int8 files")
    kind, params = write(node, writer)
    static = writer.site.operands.static
    inputs = [writer.float_of(n) for n in node.inputs if n and n not in static]
    (output,) = node.outputs
    writer.layer(kind, inputs, writer.made(output), params)
    writer.settle(output)


def _binary(code: int) -> Callable[[Node, _Writer], tuple[str, dict[int, Any]]]:
    def write(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
        static = [n for n in node.inputs if n in writer.site.operands.static]
        if not static:
            return "BinaryOp", {0: code}
        value = writer.site.operands.value(static[0])
        if value.size != 1 or node.inputs[0] in static:
            raise UnsupportedError(f"{node.op} node {node.name!r}: its constant must be a scalar")
        return "BinaryOp", {0: code, 1: 1, 2: float(value.reshape(()))}

    return write


def _pool(code: int) -> Callable[[Node, _Writer], tuple[str, dict[int, Any]]]:
    def write(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
        view = window(node, writer.shapes[node.inputs[0]][2:], tuple(node.attrs["kernel_shape"]))
        if len(view.kernel) != 2 or set(view.dilations) != {1} or node.attrs.get("ceil_mode", 0):
            raise UnsupportedError(f"{node.op} node {node.name!r}: ncnn pools plain 2-D windows")
        (top, bottom), (left, right) = view.pads
        return "Pooling", {
            0: code, 1: view.kernel[1], 11: view.kernel[0], 2: view.strides[1],
            12: view.strides[0], 3: left, 13: top, 14: right, 15: bottom, 5: 1,
            6: int(node.attrs.get("count_include_pad", 0)),
        }  # fmt: skip

    return write


def _whole_mean(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
    if node.op == "ReduceMean":
        rank, axes = len(writer.shapes[node.inputs[0]]), node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1]:
            axes = writer.site.operands.value(node.inputs[1]).reshape(-1).tolist()
        if rank != 4 or sorted(a % 4 for a in axes or ()) != [2, 3]:
            raise UnsupportedError(f"ReduceMean node {node.name!r}: ncnn pools height and width")
    return "Pooling", {0: 1, 4: 1}


def _flat(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
    if len(writer.shapes[node.outputs[0]]) != 2:
        raise UnsupportedError(f"{node.op} node {node.name!r}: only flattening is written")
    return "Flatten", {}


def _joined(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
    axis = node.attrs.get("axis", -1) % len(writer.shapes[node.inputs[0]])
    if axis == 0:
        raise UnsupportedError(f"{node.op} node {node.name!r}: ncnn has no batch axis")
    return node.op, {0: axis - 1, **({1: 1} if node.op == "Softmax" else {})}


def _clip(node: Node, writer: _Writer) -> tuple[str, dict[int, Any]]:
    given = [node.attrs.get("min"), node.attrs.get("max")]
    for i, name in enumerate(node.inputs[1:3]):
        given[i] = float(writer.site.operands.value(name).reshape(())) if name else given[i]
    params = {i: float(v) for i, v in enumerate(given) if v is not None}
    return "Clip", params


_PRODUCTS: Mapping[str, Callable[[Group, _Writer], None]] = {
    "Conv": _conv,
    "Gemm": _dense,
    "MatMul": _dense,
}
_FLOATS: Mapping[str, Callable[[Node, _Writer], tuple[str, dict[int, Any]]]] = {
    "Add": _binary(0),
    "AveragePool": _pool(1),
    "Clip": _clip,
    "Concat": _joined,
    "Div": _binary(3),
    "Flatten": _flat,
    "GlobalAveragePool": _whole_mean,
    "HardSwish": lambda node, writer: ("HardSwish", {0: 1 / 6, 1: 0.5}),
    "Identity": lambda node, writer: ("Noop", {}),
    "LeakyRelu": lambda node, writer: ("ReLU", {0: float(node.attrs.get("alpha", 0.01))}),
    "MaxPool": _pool(0),
    "Mul": _binary(2),
    "ReduceMean": _whole_mean,
    "Relu": lambda node, writer: ("ReLU", {}),
    "Reshape": _flat,
    "Sigmoid": lambda node, writer: ("Sigmoid", {}),
    "Softmax": _joined,
    "Squeeze": _flat,
    "Sub": _binary(1),
    "Tanh": lambda node, writer: ("TanH", {}),
}
