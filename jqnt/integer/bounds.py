"""How far accumulators can go: a proof per layer from its weights, or the inputs that are safe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jqnt.encodings import Encodings
from jqnt.formats import Integer
from jqnt.graph.ir import Graph
from jqnt.graph.roles import weight_of
from jqnt.integer.absorb import absorb
from jqnt.integer.arithmetic import arithmetic_named
from jqnt.integer.group import Group, per_tensor
from jqnt.integer.operands import Operands
from jqnt.integer.partition import partition

__all__ = ["Bound", "bounds"]


@dataclass(frozen=True)
class Bound:
    """The accumulator of one product, over all its outputs and every partial sum in any order.

        low = sum of min(0, w (x - z)) + min(0, bias),   high likewise, x over the input's grid

    `bits` is the width that holds both. `reach` is the largest |x - z|, in codes, for which the
    asked width holds for sure: the whole grid where `fits`.
    """

    tensor: str
    node: str
    low: int
    high: int
    bits: int
    fits: bool
    reach: int


def bounds(
    graph: Graph,
    params: Mapping[str, Any],
    encodings: Encodings,
    *,
    bits: int = 32,
    arithmetic: str = "onnxruntime",
) -> tuple[Bound, ...]:
    """A bound for each integer product of the graph, in order: does `bits` never overflow?

    Exact integers from the frozen weights and biases; nothing is assumed of the data.
    """
    graph, encodings = absorb(graph, encodings)
    operands = Operands(graph, params, encodings)
    site, steps = partition(operands, arithmetic_named(arithmetic))
    found = []
    for step in steps:
        if not isinstance(step, Group):
            continue
        weight = weight_of(step.head, operands.static)
        coded = None if weight is None else operands.coded(weight.tensor)
        if weight is None or coded is None or weight.channel_axis is None:
            continue
        grid = site.grids[weight.data]
        assert isinstance(grid.format, Integer)
        sx, zero_point = per_tensor(grid, site.where(step))
        rows = np.moveaxis(coded.centred, weight.channel_axis, 0)
        rows = rows.reshape(rows.shape[0], -1)
        scale = np.float32(step.head.attrs.get("alpha", 1.0)) * sx
        bias = operands.bias_codes(
            weight.bias, scale * coded.per_channel(weight.channel_axis, site.where(step))
        )
        below, above = (limit - zero_point for limit in grid.format.limits)
        found.append(_bound(step, rows, bias, below, above, bits))
    return tuple(found)


def _bound(
    group: Group, rows: np.ndarray, bias: np.ndarray, below: int, above: int, bits: int
) -> Bound:
    ends = np.stack([rows * below, rows * above, np.zeros_like(rows)])
    low = int((ends.min(0).sum(1) + np.minimum(bias, 0)).min())
    high = int((ends.max(0).sum(1) + np.maximum(bias, 0)).max())
    top = 2 ** (bits - 1) - 1
    fits = low >= -top - 1 and high <= top
    whole = max(-below, above)
    magnitude = np.maximum(np.abs(rows).sum(1), 1)
    safe = int(((top - np.abs(bias)) // magnitude).min())
    needed = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1
    reach = whole if fits else max(min(safe, whole), 0)
    return Bound(group.output, group.head.name, low, high, needed, fits, reach)
