"""Kernels on single codes: clamps and moves to another grid, and tables of unary functions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid
from jqnt.graph.lower import run_node
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.kernel_join import rescaled, rescaling
from jqnt.integer.rule import container, true_codes

__all__ = ["CLAMP", "LOOKUP"]


def _ready(node: Node, site: Site) -> bool:
    beside = [name for name in node.inputs[1:] if name]
    return node.inputs[0] in site.grids and site.operands.static.issuperset(beside)


def _clamp_ready(node: Node, site: Site) -> bool:
    data = [n for n in node.inputs if n and n not in site.operands.static]
    return len(data) == 1 and data[0] in site.grids


def _data(node: Node, site: Site) -> int:
    return next(i for i, name in enumerate(node.inputs) if name in site.grids)


def _clamp_prepare(group: Group, site: Site) -> dict[str, Any]:
    x = site.grids[group.head.inputs[_data(group.head, site)]]
    rule = rescaling(x, site.grids[group.output], site, site.where(group))
    return {"rule": rule, **clamp(group, site)}


def _clamp_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    place = _data(group.head, site)
    x = values[place]
    assert x is not None
    out = out_grid(table, x.array.ndim, x.last)
    grids = site.grids[group.head.inputs[place]], site.grids[group.output]
    return x._replace(array=rescaled(x.array, *grids, table["rule"], site, out))


def _lookup_prepare(group: Group, site: Site) -> dict[str, Any]:
    """One entry per code: dequantize, the float32 operator, quantize."""
    node = group.head
    x, y = site.grids[node.inputs[0]], site.grids[group.output]
    assert isinstance(x.format, Integer) and isinstance(y.format, Integer)
    if x.format.bits > 16:
        raise UnsupportedError(f"{site.where(group)}: no table of 2^{x.format.bits} entries")
    low, high = x.format.limits
    real = x.dequantize(np.arange(low, high + 1))
    beside = [site.operands.value(name) if name else None for name in node.inputs[1:]]
    result = np.asarray(run_node(node, [real, *beside])[0], np.float32)
    grid = clamp(group, site)
    codes = np.clip(y.quantize(result), grid["low"], grid["high"])
    box = container(y.format)
    return {"table": (codes - box.shift).astype(box.dtype), "first": np.int32(low)}


def _lookup_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    x = values[0]
    assert x is not None
    index = true_codes(x.array, site.grids[group.head.inputs[0]]) - table["first"]
    return x._replace(array=jnp.take(jnp.asarray(table["table"]), index, mode="clip"))


CLAMP = Kernel(_clamp_ready, _clamp_prepare, _clamp_run)
LOOKUP = Kernel(_ready, _lookup_prepare, _lookup_run)
