"""Kernels of means over space: global pools, ReduceMean over the spatial axes, AveragePool."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_last, to_onnx
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.mean import in_order
from jqnt.integer.rule import store, true_codes
from jqnt.ops.window import places, window

__all__ = ["AVERAGE_POOL", "MEAN", "float_mean", "mean_axes"]


def mean_axes(node: Node, site: Site, rank: int | None = None) -> tuple[int, ...] | None:
    """The axes of a mean as given; None for all spatial ones."""
    if node.op == "GlobalAveragePool":
        return None
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        axes = site.operands.value(node.inputs[1]).reshape(-1).tolist()
    return tuple(axes) if axes is not None else ()


def _ready(node: Node, site: Site) -> bool:
    return node.inputs[0] in site.grids


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    rule = site.arithmetic.mean
    if rule is None:
        raise UnsupportedError(f"{site.where(group)}: this arithmetic has no such kernel")
    x, y = site.grids[group.head.inputs[0]], site.grids[group.output]
    return {"rule": rule.prepare(x, y), **clamp(group, site)}


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    node, rule = group.head, site.arithmetic.mean
    assert values[0] is not None and rule is not None
    x = to_last(values[0]).array
    axes = mean_axes(node, site)
    rank = x.ndim
    spatial = tuple(range(1, rank - 1))
    if axes is not None and sorted(a % rank for a in axes) != [a + 1 for a in spatial]:
        raise UnsupportedError(
            f"{site.where(group)}: integer means run over all spatial axes, not over {axes} of "
            f"rank {rank}"
        )
    count = math.prod(x.shape[a] for a in spatial)
    total = true_codes(x, site.grids[node.inputs[0]]).sum(spatial, keepdims=True)
    out = out_grid(table, rank, True)
    codes = Laid(
        store(rule.apply(total, count, table["rule"], out), site.grids[group.output]), True
    )
    if axes is None or node.attrs.get("keepdims", 1):
        return codes
    return Laid(to_onnx(codes).array.reshape(codes.array.shape[0], -1))


def float_mean(node: Node, site: Site, x: Laid) -> Laid | None:
    """A mean over all spatial axes that stays float, added up in order; None for other nodes."""
    if node.op not in ("GlobalAveragePool", "ReduceMean") or np.ndim(x.array) < 3:
        return None
    laid, axes = to_last(x).array, mean_axes(node, site)
    rank = laid.ndim
    if axes is not None and sorted(a % rank for a in axes) != list(range(2, rank)):
        return None
    mean = Laid(in_order(laid), True)
    if axes is None or node.attrs.get("keepdims", 1):
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
