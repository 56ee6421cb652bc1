"""How operators written for ONNX's layout run on channels-last arrays: their axes are renamed.

A value of rank r >= 3 is channels-last when its array is (N, spatial..., C) where ONNX says
(N, C, spatial...). Moving data between the two costs a pass over memory; renaming axes costs
nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jqnt.formats import Granularity
from jqnt.graph.ir import Node
from jqnt.packed import Packed
from jqnt.quantizers import (
    Affine,
    Cast,
    Dropped,
    Half,
    Microscaled,
    Mixture,
    Select,
    Stochastic,
)
from jqnt.ranges import Dsq, Ewgs, Lsq, LsqPlus, MinMax, Pact, Qil, Tqt

__all__ = ["RENAMED", "Laid", "align", "last_quantizer", "new_axis", "to_last", "to_onnx"]


class Laid(NamedTuple):
    """An array and how it lies: channels-last, or as ONNX has it."""

    array: Any
    last: bool = False


def to_last(value: Laid) -> Laid:
    """The value channels-last; ranks below three have no other layout."""
    rank = np.ndim(value.array)
    if value.last or rank < 3:
        return value
    return Laid(value.array.transpose(0, *range(2, rank), 1), True)


def to_onnx(value: Laid) -> Laid:
    """The value as ONNX has it."""
    if not value.last:
        return value
    rank = np.ndim(value.array)
    return Laid(value.array.transpose(0, rank - 1, *range(1, rank - 1)))


def align(values: list[Laid | None]) -> tuple[list[Any], bool]:
    """Arrays of one layout and rank, that broadcast without promotion, and whether it is last.

    Scalars stay scalars.
    """
    ranks = [np.ndim(v.array) for v in values if v is not None]
    rank = max(ranks, default=0)
    last = any(v is not None and v.last and np.ndim(v.array) == rank for v in values)
    arrays: list[Any] = []
    for value in values:
        if value is None:
            arrays.append(None)
            continue
        own = np.ndim(value.array)
        if own and own < rank:
            array = to_onnx(value).array
            value = Laid(array.reshape((1,) * (rank - own) + array.shape))
        if own:
            value = to_last(value) if last else to_onnx(value)
        arrays.append(value.array)
    return arrays, last and rank >= 3


_OF_THE_CHANNEL = Affine | Cast | Dsq | Ewgs | Lsq | LsqPlus | MinMax | Pact | Qil | Tqt
"""Kinds whose leaves go along the granularity's axis, and no other."""


def last_quantizer(quantizer: Any, rank: int) -> Any | None:
    """The quantizer that does to a channels-last array what `quantizer` does to ONNX's.

    None where only ONNX's layout will do: leaves of the tensor's own shape, blocks, and kinds
    that are not known here.
    """
    if isinstance(quantizer, Microscaled):
        return replace(quantizer, axis=new_axis(quantizer.axis, rank))
    if isinstance(quantizer, _OF_THE_CHANNEL):
        axis, block = quantizer.granularity.axis, quantizer.granularity.block
        if axis is None:
            return quantizer
        if block is not None or isinstance(axis, tuple):
            return None
        return replace(quantizer, granularity=Granularity(new_axis(axis, rank)))
    if isinstance(quantizer, Mixture | Select):
        branches = tuple(last_quantizer(branch, rank) for branch in quantizer.branches)
        return None if any(b is None for b in branches) else replace(quantizer, branches=branches)
    if isinstance(quantizer, Packed):
        kinds = tuple(last_quantizer(kind, rank) for kind in quantizer.kinds)
        return None if any(k is None for k in kinds) else replace(quantizer, kinds=kinds)
    if isinstance(quantizer, Dropped | Half | Stochastic):
        inner = last_quantizer(quantizer.quantizer, rank)
        return None if inner is None else replace(quantizer, quantizer=inner)
    return None


def new_axis(axis: int, rank: int) -> int:
    """Where ONNX's `axis` lies in the channels-last array."""
    axis %= rank
    return 0 if axis == 0 else rank - 1 if axis == 1 else axis - 1


Renamed = tuple[Node, list[Any], bool] | None
"""The node and arrays to run instead, and whether the outputs are channels-last."""


def _concat(node: Node, values: list[Laid | None]) -> Renamed:
    rank = np.ndim(values[0].array) if values[0] is not None else 0
    arrays = [to_last(v).array for v in values if v is not None]
    if "axis" not in node.attrs or any(np.ndim(a) != rank for a in arrays):
        return None
    return _with(node, axis=new_axis(node.attrs["axis"], rank)), arrays, True


def _axis_attribute(node: Node, values: list[Laid | None]) -> Renamed:
    data = values[0]
    if data is None or "axis" not in node.attrs:
        return None
    rank = np.ndim(data.array)
    rest = [None if v is None else to_onnx(v).array for v in values[1:]]
    return _with(node, axis=new_axis(node.attrs["axis"], rank)), [data.array, *rest], True


def _reduce(node: Node, values: list[Laid | None]) -> Renamed:
    """Over spatial axes, kept or not; the channel may only go where all else but N goes."""
    data = values[0]
    if data is None:
        return None
    rank = np.ndim(data.array)
    axes = node.attrs.get("axes")
    given = values[1] if len(values) > 1 else None
    if axes is None and given is not None and isinstance(given.array, np.ndarray):
        axes = given.array.reshape(-1).tolist()
    if not axes:
        return None
    renamed = sorted(new_axis(a, rank) for a in axes)
    keep = bool(node.attrs.get("keepdims", 1))
    spatial = list(range(1, rank - 1))
    if not keep and not set(spatial) <= set(renamed):
        return None
    if given is not None:
        return node, [data.array, np.asarray(renamed)], keep
    return _with(node, axes=tuple(renamed)), [data.array], keep


def _pad(node: Node, values: list[Laid | None]) -> Renamed:
    data = values[0]
    if data is None or (len(values) > 3 and values[3] is not None):
        return None
    rank = np.ndim(data.array)
    given = values[1] if len(values) > 1 else None
    key = next((k for k in ("pads", "paddings") if k in node.attrs), None)
    pads = node.attrs[key] if key else getattr(given, "array", None)
    if pads is None or not isinstance(pads, np.ndarray | tuple) or len(pads) != 2 * rank:
        return None
    order = [0, *range(2, rank), 1]
    pads = np.asarray(pads)
    renamed = np.concatenate([pads[:rank][order], pads[rank:][order]])
    if key:
        return _with(node, **{key: tuple(renamed.tolist())}), [data.array], True
    rest = [None if v is None else v.array for v in values[2:]]
    return node, [data.array, renamed, *rest], True


def _slice(node: Node, values: list[Laid | None]) -> Renamed:
    data = values[0]
    if data is None:
        return None
    rank = np.ndim(data.array)
    if "starts" in node.attrs:
        starts = node.attrs["starts"]
        axes = node.attrs.get("axes", tuple(range(len(starts))))
        return _with(node, axes=tuple(new_axis(a, rank) for a in axes)), [data.array], True
    rest = [None if v is None else v.array for v in values[1:]]
    if not all(r is None or isinstance(r, np.ndarray) for r in rest):
        return None
    rest += [None] * (4 - len(rest))
    starts = np.zeros(0) if rest[0] is None else rest[0]
    axes = rest[2] if rest[2] is not None else np.arange(np.size(starts))
    rest[2] = np.asarray([new_axis(int(a), rank) for a in np.ravel(axes)], np.int64)
    return node, [data.array, *rest], True


def _transpose(node: Node, values: list[Laid | None]) -> Renamed:
    """perm on the ONNX axes, composed with where they lie now; the result is ONNX's."""
    data = values[0]
    if data is None:
        return None
    rank = np.ndim(data.array)
    perm = node.attrs.get("perm", tuple(reversed(range(rank))))
    if len(perm) != rank:
        return None
    return _with(node, perm=tuple(new_axis(a, rank) for a in perm)), [data.array], False


def _with(node: Node, **attrs: Any) -> Node:
    return node.replace(attrs={**node.attrs, **attrs})


RENAMED: Mapping[str, Callable[[Node, list[Laid | None]], Renamed]] = {
    "Concat": _concat,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _axis_attribute,
    "Transpose": _transpose,
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ),
        _reduce,
    ),
}
"""Operator of the default domain -> its renaming; None from it means: give me ONNX's layout."""
