"""The kernel of linear Resize: two axes of an image interpolated between codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_last
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid
from jqnt.integer.resize import COORDINATES
from jqnt.integer.rule import store, true_codes
from jqnt.ops.resize import Axis, plan_of

__all__ = ["RESIZE", "coordinates", "image_axes"]

_HALF = "pytorch_half_pixel"
"""As half_pixel, unless one pixel is left."""

_REFUSED = ("antialias", "exclude_outside")


def coordinates(group: Group, site: Site) -> str:
    """The coordinate transformation; UnsupportedError where integer kernels have none such."""
    attrs = group.head.attrs
    mode = attrs.get("coordinate_transformation_mode", "half_pixel")
    mode = "half_pixel" if mode == _HALF else mode
    found = [f"{key}=1" for key in _REFUSED if attrs.get(key, 0)]
    if mode not in COORDINATES or found:
        raise UnsupportedError(
            f"{site.where(group)}: integer kernels interpolate with coordinates "
            f"{', '.join(COORDINATES)} and every pixel alike, not {', '.join([mode, *found])}"
        )
    return mode


def image_axes(group: Group, site: Site, shape: Sequence[int]) -> tuple[Axis, Axis]:
    """Rows and columns of an image of that ONNX shape; UnsupportedError where others change, or
    pytorch_half_pixel leaves one pixel."""
    node = group.head
    beside = [site.operands.value(name) if name else None for name in node.inputs[1:]]
    given = [v if v is not None and np.size(v) else None for v in (*beside, None, None, None)]
    plan = plan_of(node, tuple(shape), *given[:3])
    other = [e for e in plan if e.axis not in (2, 3) and (e.scale != 1 or e.size != e.out)]
    if len(shape) != 4 or other:
        raise UnsupportedError(f"{site.where(group)}: integer kernels resize images, rank 4")
    axes = {e.axis: e for e in plan}
    rows, columns = (axes.get(a, Axis(a, shape[a], shape[a], 1.0, 0.0, 1.0)) for a in (2, 3))
    if node.attrs.get("coordinate_transformation_mode") == _HALF and 1 in (rows.out, columns.out):
        raise UnsupportedError(f"{site.where(group)}: {_HALF} down to one pixel")
    return rows, columns


def _ready(node: Node, site: Site) -> bool:
    beside = [name for name in node.inputs[1:] if name]
    linear = node.attrs.get("mode") == "linear" and node.since >= 11
    known = node.inputs[0] in site.grids and site.operands.static.issuperset(beside)
    return linear and known and site.arithmetic.resize is not None


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    rule = site.arithmetic.resize
    assert rule is not None
    coordinates(group, site)
    try:
        table = rule.prepare(site.grids[group.head.inputs[0]], site.grids[group.output])
    except UnsupportedError as error:
        raise UnsupportedError(f"{site.where(group)}: {error}") from None
    return {"rule": table, **clamp(group, site)}


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    rule = site.arithmetic.resize
    assert values[0] is not None and rule is not None
    x = to_last(values[0]).array
    rows, columns = image_axes(group, site, (x.shape[0], x.shape[-1], *x.shape[1:-1]))
    codes, out = true_codes(x, site.grids[group.head.inputs[0]]), out_grid(table, 4, True)
    mode = coordinates(group, site)
    try:
        result = rule.apply(codes, rows, columns, mode, table["rule"], out)
    except UnsupportedError as error:
        raise UnsupportedError(f"{site.where(group)}: {error}") from None
    return Laid(store(result, site.grids[group.output]), True)


RESIZE = Kernel(_ready, _prepare, _run)
