"""The kernel of LayerNormalization along the last axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_onnx
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.rule import store, true_codes

__all__ = ["LAYER_NORM"]


def _ready(node: Node, site: Site) -> bool:
    beside = [name for name in node.inputs[1:] if name]
    alone = not any(node.outputs[1:]) and site.operands.static.issuperset(beside)
    return alone and node.inputs[0] in site.grids and site.arithmetic.layer_norm is not None


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    node, rule = group.head, site.arithmetic.layer_norm
    assert rule is not None
    shape = site.operands.shapes[node.inputs[0]]
    if node.attrs.get("axis", -1) % len(shape) != len(shape) - 1:
        raise UnsupportedError(f"{site.where(group)}: integer LayerNorm runs along the last axis")
    x, y = site.grids[node.inputs[0]], site.grids[group.output]
    gain = np.broadcast_to(site.operands.value(node.inputs[1]).reshape(-1), shape[-1:])
    bias = np.zeros_like(gain)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = np.broadcast_to(site.operands.value(node.inputs[2]).reshape(-1), shape[-1:])
    try:
        table = rule.prepare(x, y, gain, bias, node.attrs.get("epsilon", 1e-5))
    except UnsupportedError as error:
        raise UnsupportedError(f"{site.where(group)}: {error}") from None
    return {"rule": table, **clamp(group, site)}


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    rule, x = site.arithmetic.layer_norm, values[0]
    assert rule is not None and x is not None
    codes = true_codes(to_onnx(x).array, site.grids[group.head.inputs[0]])
    result = rule.apply(codes, table["rule"], out_grid(table, codes.ndim, False))
    return Laid(store(result, site.grids[group.output]))


LAYER_NORM = Kernel(_ready, _prepare, _run)
