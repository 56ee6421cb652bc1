"""The axes of a weight as it is stored, which encodings files imply and do not say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import weight_of

__all__ = ["WeightAxes", "weight_axes"]


@dataclass(frozen=True)
class WeightAxes:
    """The axis of the output channels (None where there is none), how many there are, the axis
    that is summed, and the rank."""

    channel: int | None
    channels: int
    summed: int
    rank: int


def weight_axes(graph: Graph, params: Mapping[str, Any]) -> dict[str, WeightAxes]:
    """The axes of every weight and bias that the graph stores, seen through Transpose.

    A weight that several nodes read has the axes that the first one gives it.
    """
    static = static_tensors(graph)
    found: dict[str, WeightAxes] = {}
    for node in graph.nodes:
        weight = weight_of(node, static)
        if weight is None:
            continue
        if weight.bias is not None and weight.bias in params:
            found.setdefault(weight.bias, _bias(np.shape(params[weight.bias])))
        name, channel, summed = weight.tensor, weight.channel_axis, weight.input_axis
        while name in graph.producer and graph.producer[name].op in ("Identity", "Transpose"):
            maker = graph.producer[name]
            if maker.op == "Transpose":
                perm = maker.attrs.get("perm")
                channel = _through(channel, perm)
                summed = _through(summed, perm) or 0
            name = maker.inputs[0]
        if name in params:
            shape = np.shape(params[name])
            channel = None if channel is None else channel % len(shape)
            count = 1 if channel is None else shape[channel]
            found.setdefault(name, WeightAxes(channel, count, summed % len(shape), len(shape)))
    return found


def _bias(shape: tuple[int, ...]) -> WeightAxes:
    rank = max(len(shape), 1)
    return WeightAxes(rank - 1, shape[-1] if shape else 1, 0, rank)


def _through(axis: int | None, perm: Any) -> int | None:
    """Where an axis of the transposed tensor comes from; reversed axes without a perm."""
    if axis is None:
        return None
    return -1 - axis if perm is None else int(perm[axis])
