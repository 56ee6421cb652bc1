"""What one operator asks of the hardware: its loop nest, and its passes on the vector unit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from jqnt.errors import ModelError
from jqnt.graph.ir import Node
from jqnt.npu.geometry import Image, image
from jqnt.npu.vocabulary import (
    CONVOLUTIONS,
    LOOKUPS,
    MOVES,
    NORMALIZATIONS,
    PRODUCTS,
    RECURRENT,
    REDUCTIONS,
    RESHAPES,
    SOFTMAXES,
    VIEWS,
    WINDOWS,
)

__all__ = ["PRODUCT_KINDS", "VECTOR_WORK", "Tensors", "Work", "work_of"]

PRODUCT_KINDS = frozenset(("conv", "dense", "matmul", "depthwise"))
"""The kinds of work that multiply matrices."""

VECTOR_WORK = (
    "elementwise",  # add, subtract, multiply, compare, clip: one result per element
    "affine",  # a scale and a shift per channel that no product before it takes up
    "divide",  # true division by a tensor
    "lookup",  # a function of one variable: sigmoid, tanh, erf, GELU, hard-swish
    "pool",  # one window element of a maximum or average pooling
    "reduce",  # one input element of a sum, mean or maximum over axes
    "softmax",  # one element of a softmax
    "normalize",  # one element of a layer, instance or group normalization
    "move",  # one element that changes its place: transpose, concat, gather, pad
    "convert",  # one element that changes its number format
)
"""The kinds of work beside matrix products; a device has a cost per element for each."""


@dataclass(frozen=True)
class Work:
    """The loop nest `count x height x width x groups x out_channels x in_channels x kernel` of a
    product (`in_channels` 0 where there is none), over the pixels of the result. `in_size` is the
    height and width of its input where they differ.

    `passes` counts, by kind of vector work, the element operations per element of the result.
    `kind` is conv, depthwise, dense (a product with a constant matrix), matmul (of two
    activations), vector, move or view (no work at all).
    """

    kind: str
    count: int = 1
    height: int = 1
    width: int = 1
    in_channels: int = 0
    out_channels: int = 1
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_size: tuple[int, int] = (0, 0)
    passes: Mapping[str, float] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, unpadded."""
        pixels = self.count * self.height * self.width
        return pixels * self.groups * self.out_channels * self.in_channels * prod(self.kernel)


@dataclass(frozen=True)
class Tensors:
    """Static facts about the tensors of a graph: shapes, channel axes, and which are constant."""

    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int]
    constant: frozenset[str]

    def image(self, name: str) -> Image:
        """The tensor as images."""
        return image(self.shapes[name], self.axes.get(name, -1))

    def data(self, node: Node) -> tuple[str, ...]:
        """The node's inputs that are computed from the graph's inputs."""
        return tuple(name for name in node.inputs if name and name not in self.constant)


def work_of(node: Node, tensors: Tensors) -> Work:
    """The work of one node; an operator without an entry moves its result once, elementwise."""
    return _TABLE.get(node.op, _elementwise("elementwise"))(node, tensors)


def _result(node: Node, tensors: Tensors, kind: str, **passes: float) -> Work:
    """Vector work over the pixels of the first output."""
    return _over(tensors.image(node.outputs[0]), kind, **passes)


def _over(volume: Image, kind: str, **passes: float) -> Work:
    count, height, width, channels = volume
    return Work(kind, count, height, width, 0, channels, passes=passes)


def _elementwise(work: str) -> Callable[[Node, Tensors], Work]:
    return lambda node, tensors: _result(node, tensors, "vector", **{work: 1.0})


def _divide(node: Node, tensors: Tensors) -> Work:
    """A division by a constant scalar is a product with its reciprocal."""
    divisor = node.inputs[1]
    scalar = divisor in tensors.constant and prod(tensors.shapes[divisor]) == 1
    work = "elementwise" if scalar else "divide"
    return _result(node, tensors, "vector", **{work: 1.0})


def _conv(node: Node, tensors: Tensors) -> Work:
    """Weights are (out, in / groups, *kernel); further spatial axes count as images."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    out, per_group, *window = tensors.shapes[w]
    groups = int(node.attrs.get("group", 1))
    if node.op == "ConvTranspose":
        pixels = tensors.image(x)  # each input pixel meets every tap once
        per_group, out = tensors.shapes[x][1] // groups, per_group * groups
    else:
        pixels = tensors.image(y)
    strides = [int(s) for s in node.attrs.get("strides", ())] or [1] * len(window)
    kernel = (prod(window[:-1]), window[-1]) if window else (1, 1)
    depthwise = groups > 1 and per_group == 1
    return Work(
        "depthwise" if depthwise else "conv",
        pixels.images,
        pixels.height,
        pixels.width,
        per_group,
        out // groups,
        groups,
        kernel,
        (prod(strides[:-1]), strides[-1]) if strides else (1, 1),
        tensors.image(x)[1:3],
    )


def _matmul(node: Node, tensors: Tensors) -> Work:
    """(..., M, K) x (..., K, N); a constant right operand makes it a dense layer."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    left, right = tensors.shapes[a], tensors.shapes[b]
    depth = left[0] if node.attrs.get("transA") else left[len(left) - 1]
    if b in tensors.constant or a in tensors.constant:
        pixels = image(tensors.shapes[y], -1)
        return Work("dense", *pixels[:3], depth, pixels.channels)
    if not tensors.shapes[y]:
        return Work("matmul", in_channels=depth)
    rows = tensors.shapes[y][-2] if len(tensors.shapes[y]) > 1 else 1
    columns = tensors.shapes[y][-1]
    count = prod(tensors.shapes[y][:-2])
    if not right:
        raise ModelError(f"{node.op} node {node.name!r}: a scalar operand")
    return Work("matmul", count, 1, rows, depth, columns)


def _window(node: Node, tensors: Tensors) -> Work:
    window = [int(k) for k in node.attrs.get("kernel_shape", (1, 1))]
    strides = [int(s) for s in node.attrs.get("strides", ())] or [1] * len(window)
    work = _result(node, tensors, "vector", pool=float(prod(window)))
    return replace(
        work,
        kernel=(prod(window[:-1]), window[-1]),
        stride=(prod(strides[:-1]), strides[-1]),
        in_size=tensors.image(node.inputs[0])[1:3],
    )


def _reduction(node: Node, tensors: Tensors) -> Work:
    """The loop runs over the input's pixels."""
    source = next(iter(tensors.data(node)), node.inputs[0])
    return _over(tensors.image(source), "vector", reduce=1.0)


def _recurrent(node: Node, tensors: Tensors) -> Work:
    """Two products per step, input and state, for each direction."""
    x, w, r = node.inputs[0], node.inputs[1], node.inputs[2]
    steps, batch = tensors.shapes[x][:2]
    directions, gates, depth = tensors.shapes[w]
    state = tensors.shapes[r][-1]
    passes = {"lookup": 1.0, "elementwise": 1.0}
    work = Work("dense", steps * directions, 1, batch, depth + state, gates, passes=passes)
    return replace(work, kind="dense")


def _move(node: Node, tensors: Tensors) -> Work:
    return _result(node, tensors, "move", move=1.0)


def _transpose(node: Node, tensors: Tensors) -> Work:
    """Free where the images stay: a change between channels first and last."""
    x, y = node.inputs[0], node.outputs[0]
    same = tensors.image(x) == tensors.image(y) and _keeps_pixels(node, tensors)
    return Work("view") if same else _move(node, tensors)


def _keeps_pixels(node: Node, tensors: Tensors) -> bool:
    rank = len(tensors.shapes[node.inputs[0]])
    order = [int(d) for d in node.attrs.get("perm", range(rank)[::-1])]
    channel = tensors.axes.get(node.inputs[0], -1) % max(rank, 1)
    spatial = [d for d in order if d != channel]
    return spatial == sorted(spatial)


def _reshape(node: Node, tensors: Tensors) -> Work:
    """Free where pixels and channels keep their places, as in flattening a vector."""
    x, y = tensors.image(node.inputs[0]), tensors.image(node.outputs[0])
    same = x.channels == y.channels and x.images * x.height == y.images * y.height
    vector = max(x.elements // x.channels, y.elements // y.channels) == 1
    return Work("view") if same or vector else _move(node, tensors)


def _view(node: Node, tensors: Tensors) -> Work:
    return Work("view")


def _softmax(node: Node, tensors: Tensors) -> Work:
    return _result(node, tensors, "vector", softmax=1.0)


def _normalize(node: Node, tensors: Tensors) -> Work:
    return _result(node, tensors, "vector", normalize=1.0)


_TABLE: dict[str, Callable[[Node, Tensors], Work]] = {
    **dict.fromkeys(LOOKUPS, _elementwise("lookup")),
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(PRODUCTS, _matmul),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(SOFTMAXES, _softmax),
    **dict.fromkeys(NORMALIZATIONS, _normalize),
    "BatchNormalization": _elementwise("affine"),
    "Div": _divide,
    "Transpose": _transpose,
}
