"""Where a tensor keeps its channels, and its shape as the images an NPU works on."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from jqnt.errors import ModelError
from jqnt.graph.ir import Graph, Node
from jqnt.npu.vocabulary import CHANNEL_FIRST, CHANNEL_LAST

__all__ = ["Image", "channel_axes", "image"]


class Image(NamedTuple):
    """A tensor as `images` images of `height` x `width` pixels with `channels` each."""

    images: int
    height: int
    width: int
    channels: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self)


def image(shape: tuple[int, ...], axis: int) -> Image:
    """The images of a tensor whose channels lie on `axis`; its last two other axes are spatial."""
    if not shape:
        return Image(1, 1, 1, 1)
    rest = [size for d, size in enumerate(shape) if d != axis % len(shape)]
    height, width = ([1, 1, *rest])[-2:]
    return Image(prod(rest[:-2]), height, width, shape[axis])


def channel_axes(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], constant: frozenset[str]
) -> dict[str, int]:
    """The channel axis of every tensor that is computed from data.

    Convolution-like operators say 1, matrix products say the last; everything else keeps, moves
    or merges the axis of its widest input. A graph input takes the axis of its first reader that
    knows one.
    """
    axes = {name: _input_axis(graph, name, shapes) for name in graph.inputs}
    for node in graph.nodes:
        data = [name for name in node.inputs if name and name not in constant and name in axes]
        lead = max(data, key=lambda name: len(shapes[name]), default=None)
        for out in node.outputs:
            if out and out not in constant:
                rank = len(_known(shapes, out, node))
                kept = axes[lead] if lead is not None else -1
                source = shapes[lead] if lead is not None else ()
                axes[out] = _moved(node, kept, source, shapes[out]) % max(rank, 1)
    return axes


def _known(shapes: Mapping[str, tuple[int, ...]], name: str, node: Node) -> tuple[int, ...]:
    if name not in shapes:
        raise ModelError(f"no shape for tensor {name!r} of {node.op} node {node.name!r}")
    return shapes[name]


def _input_axis(graph: Graph, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """1 if the first operator downstream that knows its layout is convolution-like, -1 if it is
    not; ONNX's own order, channels first, for images that no such operator reads."""
    rank, queue, seen = len(shapes[name]), [name], {name}
    while queue:
        for node in graph.readers.get(queue.pop(0), ()):
            if node.op in CHANNEL_FIRST:
                return min(1, rank - 1)
            if node.op in CHANNEL_LAST or node.op == "Transpose":
                return -1
            fresh = [out for out in node.outputs if out and out not in seen]
            queue += fresh
            seen.update(fresh)
    return 1 if rank == 4 else -1


def _moved(node: Node, axis: int, source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """The channel axis behind one operator, from that of its widest input."""
    if node.op in CHANNEL_FIRST:
        return min(1, len(target) - 1)
    if node.op in CHANNEL_LAST or not source:
        return -1
    if node.op == "Transpose":
        order = [int(d) for d in node.attrs.get("perm", range(len(source))[::-1])]
        return order.index(axis % len(source))
    if len(source) == len(target):
        return axis
    return _regrouped(axis % len(source), source, target)


def _regrouped(axis: int, source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """The axis of a reshaped tensor with the same size and as many elements after it, else -1."""
    after = np.prod(source[axis + 1 :], dtype=np.int64)
    for d, size in enumerate(target):
        if size == source[axis] and np.prod(target[d + 1 :], dtype=np.int64) == after:
            return d
    return -1
