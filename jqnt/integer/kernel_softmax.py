"""The kernel of Softmax along the last axis."""

from collections.abc import Sequence
from typing import Any

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_onnx
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.rule import store, true_codes

__all__ = ["SOFTMAX"]


def _ready(node: Node, site: Site) -> bool:
    return node.inputs[0] in site.grids and site.arithmetic.softmax is not None


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    node, rule = group.head, site.arithmetic.softmax
    assert rule is not None
    shape = site.operands.shapes[node.inputs[0]]
    axis = node.attrs.get("axis", -1 if node.since >= 13 else 1)
    if axis % len(shape) != len(shape) - 1:
        raise UnsupportedError(f"{site.where(group)}: integer Softmax runs along the last axis")
    x, y = site.grids[node.inputs[0]], site.grids[group.output]
    if max(x.format.bits, y.format.bits) > 8:
        raise UnsupportedError(f"{site.where(group)}: integer Softmax takes and gives 8 bits")
    try:
        table = rule.prepare(x, y, shape[-1])
    except UnsupportedError as error:
        raise UnsupportedError(f"{site.where(group)}: {error}") from None
    return {"rule": table, **clamp(group, site)}


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    rule, x = site.arithmetic.softmax, values[0]
    assert rule is not None and x is not None
    codes = true_codes(to_onnx(x).array, site.grids[group.head.inputs[0]])
    result = rule.apply(codes, table["rule"], out_grid(table, codes.ndim, False))
    return Laid(store(result, site.grids[group.output]))


SOFTMAX = Kernel(_ready, _prepare, _run)
