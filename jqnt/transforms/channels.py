"""What a positive factor per channel passes through: f(x / s) = f(x) / s."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jqnt.errors import JqntError
from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import sole_reader
from jqnt.graph.roles import Weight, weight_of
from jqnt.graph.shapes import infer_shapes
from jqnt.transforms.bounds import clip_bounds
from jqnt.types import Params

__all__ = ["Pair", "equalizable_pairs"]


@dataclass(frozen=True, eq=False)
class Pair:
    """`first` writes `channels` channels that `second` reads through the nodes `between`.

    Each channel is followed by `trailing` axes, and is read as `repeat` consecutive inputs (more
    than one after a Flatten); `group` is that of a reading convolution.
    """

    first: Weight
    second: Weight
    between: tuple[Node, ...]
    channels: int
    trailing: int
    repeat: int
    group: int


@dataclass(frozen=True)
class _Layout:
    """Where the channels are: before `trailing` axes, or last (`flat`), or, with `heads`, on two
    axes: the last one, and the one at `head_axis` (counted from the end) of that size."""

    channels: int
    trailing: int
    flat: bool
    pooled: bool = False
    heads: int = 0
    head_axis: int = 0


_ANYWHERE = frozenset({"Relu", "LeakyRelu", "PRelu"})
_SPATIAL = frozenset({"MaxPool", "AveragePool"})


def equalizable_pairs(graph: Graph, params: Params) -> list[Pair]:
    """Consecutive weights that nothing keeps from sharing scale, in order of the first.

    Every tensor on the way has one reader and is no output of the graph; weights and biases are
    params with one reader. A MatMul's bias is what an Add behind it adds. Attention's values
    reach the output projection through the heads: softmax(..) (V / s) = (softmax(..) V) / s.
    """
    pairs = []
    shapes = _Shapes(graph, params)
    for writer in graph.nodes:
        first = _own_weight(graph, params, writer)
        if first is None or first.channel_axis is None:
            continue
        shape = np.shape(params[first.tensor])
        spatial = writer.op.startswith("Conv")
        layout = _Layout(shape[first.channel_axis], len(shape) - 2 if spatial else 0, not spatial)
        if first.bias is not None and np.shape(params[first.bias]) != (layout.channels,):
            continue
        between: list[Node] = []
        tensor, here = writer.outputs[0], layout
        if writer.op == "MatMul" and (add := sole_reader(graph, tensor)) is not None:
            others = [name for name in add.inputs if name != tensor]
            if add.op == "Add" and len(others) == 1 and others[0] in params:
                if not _is_bias(graph, params, others[0], add, layout.channels):
                    continue
                first = replace(first, bias=others[0])
                between.append(add)
                tensor = add.outputs[0]
        while (node := sole_reader(graph, tensor)) is not None:
            second = _own_weight(graph, params, node)
            if second is not None and second.data == tensor:
                if (pair := _pair(layout, here, first, second, node, between, params)) is not None:
                    pairs.append(pair)
                break
            if (after := _through(graph, params, shapes, node, tensor, here)) is None:
                break
            between.append(node)
            tensor, here = node.outputs[0], after
    return pairs


def _pair(
    layout: _Layout,
    here: _Layout,
    first: Weight,
    second: Weight,
    node: Node,
    between: list[Node],
    params: Params,
) -> Pair | None:
    group = node.attrs.get("group", 1) if node.op == "Conv" else 1
    inputs = np.shape(params[second.tensor])[second.input_axis] * group
    if here.heads or here.flat == node.op.startswith("Conv") or inputs % layout.channels:
        return None
    repeat = inputs // layout.channels
    return Pair(first, second, tuple(between), layout.channels, layout.trailing, repeat, group)


def _own_weight(graph: Graph, params: Params, node: Node) -> Weight | None:
    """The node's weight, if it and all the node adds are params that nobody else reads."""
    weight = weight_of(node, params)
    if weight is None:
        return None
    rank = np.ndim(params[weight.tensor])
    if node.op == "MatMul" and (weight.input_axis != -2 or rank != 2):
        return None
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return None
    if len(node.inputs) > 2 and node.inputs[2] and weight.bias is None:
        return None
    names = [weight.tensor] if weight.bias is None else [weight.tensor, weight.bias]
    return weight if all(sole_reader(graph, name) is node for name in names) else None


class _Shapes:
    """Shapes of tensors, found when they are first asked for; none where they are not known."""

    def __init__(self, graph: Graph, params: Params):
        self.graph, self.params = graph, params

    @cached_property
    def known(self) -> Mapping[str, Any]:
        """Tensor name -> something with a shape."""
        try:
            # Symbolic sizes are 3, which is no likely number of heads.
            return infer_shapes(self.graph, self.params, batch=3)
        except JqntError:
            return {}

    def of(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, if it is known."""
        return self.known[name].shape if name in self.known else None


def _is_bias(graph: Graph, params: Params, name: str, add: Node, channels: int) -> bool:
    return np.shape(params[name]) == (channels,) and sole_reader(graph, name) is add


def _through(
    graph: Graph, params: Params, shapes: _Shapes, node: Node, tensor: str, here: _Layout
) -> _Layout | None:
    """The layout behind `node`, or None if the factors do not pass."""
    if node.domain or len([o for o in node.outputs if o]) != 1:
        return None
    if node.op == "Identity":
        return here
    if node.op in ("Mul", "Div") and not here.pooled:
        return here if _scales_evenly(graph, params, shapes, node, tensor, here) else None
    if here.heads or (here.flat and here.trailing == 0 and node.op == "Reshape"):
        return _through_heads(shapes, node, tensor, here)
    if node.inputs[0] != tensor:
        return None
    flattened = here.flat and here.trailing > 0
    if node.op in _ANYWHERE:
        return here
    if node.op == "Clip" and not flattened:
        return here if node.since >= 8 and clip_bounds(graph, node) is not None else None
    if node.op in ("Min", "Max") and not flattened:
        bound = node.inputs[1] if len(node.inputs) == 2 else ""
        shape = np.shape(params.get(bound, graph.constants.get(bound)))
        alone = sole_reader(graph, bound) is node
        return here if alone and shape == (here.channels, *(1,) * here.trailing) else None
    if here.flat:
        return None
    if node.op in _SPATIAL:
        return here
    if node.op in ("GlobalAveragePool", "GlobalMaxPool"):
        return _Layout(here.channels, here.trailing, flat=False, pooled=True)
    if node.op == "Pad":
        return here if _pads_with_zeros(graph, node) else None
    if node.op == "Flatten":
        return _Layout(here.channels, here.trailing, True) if _axis_one(node) else None
    if node.op == "ReduceMean":
        return _behind_mean(graph, node, here)
    if here.pooled and node.op in ("Reshape", "Squeeze"):
        return _behind_reshape(graph, node, here)
    return None


def _scales_evenly(
    graph: Graph, params: Params, shapes: _Shapes, node: Node, tensor: str, here: _Layout
) -> bool:
    """A product with one number, or element by element with another activation (a gate)."""
    if node.op == "Div" and node.inputs[0] != tensor:
        return False
    other = next((name for name in node.inputs if name != tensor), None)
    if other is None:
        return False
    value = params.get(other, graph.constants.get(other))
    if value is not None:
        return np.size(value) == 1
    own, gate = shapes.of(tensor), shapes.of(other)
    return own is not None and own == gate and not (here.flat and here.trailing)


def _through_heads(shapes: _Shapes, node: Node, tensor: str, here: _Layout) -> _Layout | None:
    """Into heads, across them, and back: Reshape, Transpose, MatMul with the probabilities."""
    out = shapes.of(node.outputs[0])
    if out is None:
        return None
    if node.op == "Reshape" and node.inputs[0] == tensor:
        if not here.heads:
            last = tuple(out)[-2:]
            split = len(last) == 2 and last[0] * last[1] == here.channels and last[1] > 1
            return replace(here, heads=last[0], head_axis=-2) if split else None
        merged = here.head_axis == -2 and out[-1] == here.channels
        return replace(here, heads=0, head_axis=0) if merged else None
    if node.op == "Transpose" and node.inputs[0] == tensor:
        perm = [int(axis) - len(out) for axis in node.attrs.get("perm", range(len(out))[::-1])]
        if perm[-1] != -1:
            return None
        return replace(here, head_axis=perm.index(here.head_axis) - len(out))
    if node.op == "MatMul" and node.inputs[1] == tensor != node.inputs[0]:
        return here if here.heads and here.head_axis <= -3 else None
    return None


def _axis_one(node: Node) -> bool:
    return node.attrs.get("axis", 1) == 1


def _behind_mean(graph: Graph, node: Node, here: _Layout) -> _Layout | None:
    """A mean over all axes behind the channels, which it keeps as ones or drops."""
    axes = node.attrs.get("axes")
    if len(node.inputs) > 1:
        axes = graph.constants.get(node.inputs[1])
    if axes is None:
        return None
    reduced = {int(axis) % (here.trailing + 2) for axis in np.ravel(axes)}
    if reduced != set(range(2, here.trailing + 2)):
        return None
    flat = not node.attrs.get("keepdims", 1)
    return _Layout(here.channels, here.trailing, flat, pooled=not flat)


def _behind_reshape(graph: Graph, node: Node, here: _Layout) -> _Layout | None:
    """(N, C, 1, 1) -> (N, C)."""
    values = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op == "Squeeze":
        values = node.attrs.get("axes", values)
        axes = set() if values is None else {int(v) % (here.trailing + 2) for v in np.ravel(values)}
        fits = axes == set(range(2, here.trailing + 2))
    else:
        fits = values is not None and np.size(values) == 2 and values[1] in (-1, here.channels)
    return _Layout(here.channels, here.trailing, True) if fits else None


def _pads_with_zeros(graph: Graph, node: Node) -> bool:
    """Mode `constant` must write zeros, the other modes copy; channels stay as many."""
    if len(node.inputs) > 1:
        pads = graph.constants.get(node.inputs[1])
        value = node.inputs[2] if len(node.inputs) > 2 else ""
        zero = not value or (value in graph.constants and not np.any(graph.constants[value]))
        axes = len(node.inputs) > 3 and bool(node.inputs[3])
    else:
        pads, axes = node.attrs.get("pads"), False
        zero = node.attrs.get("value", 0.0) == 0
    if pads is None or axes or (node.attrs.get("mode", "constant") == "constant" and not zero):
        return False
    pads = np.asarray(pads).reshape(2, -1)
    return pads.shape[1] >= 2 and not pads[:, :2].any()
