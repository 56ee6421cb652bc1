"""Kernels of means: global pools, ReduceMean over any axes, AveragePool."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, new_axis, to_last, to_onnx
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.mean import in_order
from jqnt.integer.rule import store, true_codes
from jqnt.ops.namespace import axis_of
from jqnt.ops.window import places, window

__all__ = ["AVERAGE_POOL", "MEAN", "float_mean", "keeps_axes", "mean_axes"]


def mean_axes(node: Node, site: Site, rank: int) -> tuple[int, ...]:
    """The axes that a mean of a tensor of `rank` runs over, in order: all where none are given."""
    if node.op == "GlobalAveragePool":
        return tuple(range(2, rank))
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        axes = site.operands.value(node.inputs[1]).reshape(-1).tolist()
    return tuple(sorted({axis_of(node, axis, rank) for axis in axes or range(rank)}))


def keeps_axes(node: Node) -> bool:
    """Whether the axes of a mean stay, with one index each."""
    return node.op == "GlobalAveragePool" or bool(node.attrs.get("keepdims", 1))


def _ready(node: Node, site: Site) -> bool:
    beside = [name for name in node.inputs[1:] if name]
    given = beside or node.attrs.get("axes") or not node.attrs.get("noop_with_empty_axes", 0)
    return bool(given) and node.inputs[0] in site.grids and site.operands.static.issuperset(beside)


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    rule = site.arithmetic.mean
    if rule is None:
        raise UnsupportedError(f"{site.where(group)}: this arithmetic has no such kernel")
    x, y = site.grids[group.head.inputs[0]], site.grids[group.output]
    return {"rule": rule.prepare(x, y), **clamp(group, site)}


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    node, rule = group.head, site.arithmetic.mean
    assert values[0] is not None and rule is not None
    x, grid, keep = values[0], site.grids[node.inputs[0]], keeps_axes(node)
    axes = mean_axes(node, site, x.array.ndim)
    if not keep and not {*range(2, x.array.ndim)} <= {*axes}:
        x = to_onnx(x)
    laid = tuple(new_axis(a, x.array.ndim) if x.last else a for a in axes)
    count = math.prod(x.array.shape[a] for a in laid)
    assert isinstance(grid.format, Integer)
    if count << grid.format.bits >= 2**31:
        raise UnsupportedError(
            f"{site.where(group)}: a mean of {count} codes of {grid.format.name} overflows its "
            f"32 bit sum"
        )
    total = true_codes(x.array, grid).sum(laid, keepdims=keep)
    last = x.last and keep
    out = out_grid(table, total.ndim, last)
    codes = rule.apply(total, count, table["rule"], out)
    return Laid(store(codes, site.grids[group.output]), last)


def float_mean(node: Node, site: Site, x: Laid) -> Laid | None:
    """A mean over all spatial axes that stays float, added up in order; None for other nodes."""
    if node.op not in ("GlobalAveragePool", "ReduceMean") or np.ndim(x.array) < 3:
        return None
    laid = to_last(x).array
    if mean_axes(node, site, laid.ndim) != tuple(range(2, laid.ndim)):
        return None
    mean = Laid(in_order(laid), True)
    if keeps_axes(node):
        return mean
    return Laid(to_onnx(mean).array.reshape(laid.shape[0], -1))


def _window_prepare(group: Group, site: Site) -> dict[str, Any]:
    rule = site.arithmetic.window_mean
    if rule is None:
        raise UnsupportedError(f"{site.where(group)}: this arithmetic has no such kernel")
    if group.head.attrs.get("ceil_mode", 0):
        raise UnsupportedError(f"{site.where(group)}: ceil_mode is not supported on integers")
    x, y = site.grids[group.head.inputs[0]], site.grids[group.output]
    return {"rule": rule.prepare(x, y), **clamp(group, site)}


def _window_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    node, rule = group.head, site.arithmetic.window_mean
    assert values[0] is not None and rule is not None
    grid = site.grids[node.inputs[0]]
    x = true_codes(to_last(values[0]).array, grid)
    view = window(node, x.shape[1:-1], tuple(node.attrs["kernel_shape"]))
    widths = ((0, 0), *view.pads, (0, 0))
    parts = places(jnp.pad(x, widths, constant_values=table["rule"]["zx"]), view)
    inside = np.pad(np.ones((1, *x.shape[1:-1], 1), np.int32), widths)
    whole = node.attrs.get("count_include_pad", 0) and not site.arithmetic.int8_pools
    counts = sum(places(np.ones_like(inside) if whole else inside, view))
    out = out_grid(table, x.ndim, True)
    codes = rule.apply(parts, jnp.asarray(counts), table["rule"], out)
    return Laid(store(codes, site.grids[group.output]), True)


MEAN = Kernel(_ready, _prepare, _run)
AVERAGE_POOL = Kernel(_ready, _window_prepare, _window_run)
