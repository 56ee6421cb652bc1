"""The kernel of transposed convolutions: a convolution of the codes spread out by the stride."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.graph.layout import Laid, to_last
from jqnt.integer.accumulate import accumulate, convolve
from jqnt.integer.group import Group, Kernel, Site
from jqnt.integer.kernel_product import product_table, shifted, weighted
from jqnt.ops.linear import transposed_geometry
from jqnt.ops.window import Window

__all__ = ["CONV_TRANSPOSE"]


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    """Taps (spatial, in, out), turned around; a grouped weight repeats its scales per group."""
    weight = site.operands.coded(group.head.inputs[1])
    assert weight is not None
    groups = group.head.attrs.get("group", 1)
    centred, scale = weight.channels(1, site.where(group))
    inputs, outputs, *kernel = centred.shape
    taps = np.flip(centred, tuple(range(2, centred.ndim)))
    taps = taps.reshape(groups, inputs // groups, outputs, *kernel)
    taps = np.moveaxis(taps, (1, 0, 2), (-3, -2, -1))
    taps = taps.reshape(*kernel, inputs // groups, groups * outputs)
    return product_table(group, site, taps, np.tile(scale, groups))


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    assert values[0] is not None
    node, x = group.head, to_last(values[0]).array
    kernel = table["pieces"][0].shape[:-2]
    geometry = transposed_geometry(node, x.shape[1:-1], kernel)
    view = geometry.view
    widths = [(0, 0, 0)]
    for count, size, stride, span, (before, _) in zip(
        geometry.out, geometry.sizes, view.strides, view.spans, view.pads, strict=True
    ):
        low = span - 1 - before
        widths.append((low, size + span - 1 - ((count - 1) * stride + 1) - low, stride - 1))
    widths.append((0, 0, 0))
    # What is spread in between and around is the zero point, which adds nothing.
    spread = lax.pad(x, jnp.asarray(table["zx"]).astype(x.dtype), widths)
    ones = (1,) * len(kernel)
    plain = Window(kernel, ones, view.dilations, ((0, 0),) * len(kernel))
    groups = node.attrs.get("group", 1)

    def product(part: Any) -> Any:
        return convolve(part, table["pieces"], plain, groups, 0)

    acc = accumulate(product, spread, "wide" in table)
    return shifted(group, site, table, acc, x.dtype, True)


CONV_TRANSPOSE = Kernel(weighted, _prepare, _run)
