"""The kernel of MatMul: with a weight matrix, or of two activations."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_onnx
from jqnt.integer.group import Group, Kernel, Site, per_tensor
from jqnt.integer.kernel_product import finish, finishing, product_table, rows
from jqnt.integer.rule import container
from jqnt.ops.int8_products import matmul

__all__ = ["MATMUL"]


def _ready(node: Node, site: Site) -> bool:
    left, right = node.inputs
    if left not in site.grids:
        return False
    weight = site.operands.coded(right)
    return right in site.grids or (weight is not None and weight.codes.ndim == 2)


def _prepare(group: Group, site: Site) -> dict[str, Any]:
    left, right = group.head.inputs
    if right not in site.grids:
        weight = site.operands.coded(right)
        assert weight is not None
        return product_table(group, site, *weight.channels(1, site.where(group)))
    where = site.where(group)
    (sa, za), (sb, zb) = (per_tensor(site.grids[name], where) for name in (left, right))
    formats = [site.grids[name].format for name in (left, right)]
    boxes = [container(fmt) for fmt in formats if isinstance(fmt, Integer)]
    if any(box.dtype.itemsize > 1 for box in boxes) or site.accumulator is not None:
        raise UnsupportedError(
            f"{where}: products of two activations take 8 bits each and 32 bit sums"
        )
    none = np.zeros(1, np.int64)
    return {
        "za": np.int32(za - boxes[0].shift),
        "zb": np.int32(zb - boxes[1].shift),
        **finishing(group, site, sa, np.full(1, sb), none, none.astype(np.float32)),
    }


def _run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    first, second = values
    assert first is not None
    a = to_onnx(first).array
    if "pieces" in table:
        return rows(group, site, table, a)
    assert second is not None
    b = to_onnx(second).array
    acc = _pairwise(a, b, table["za"], table["zb"])
    return finish(group, site, table, acc, False)


def _pairwise(
    a: Int[Array, "... m k"], b: Int[Array, "... k n"], za: Any, zb: Any
) -> Int[Array, "... m n"]:
    """sum (a - za)(b - zb) = sum ab - za sum b - zb sum a + k za zb, so that operands stay int8."""
    sums_a = a.astype(jnp.int32).sum(-1, keepdims=True)
    sums_b = b.astype(jnp.int32).sum(-2, keepdims=True)
    return matmul(a, b) - za * sums_b - zb * sums_a + a.shape[-1] * za * zb


MATMUL = Kernel(_ready, _prepare, _run)
