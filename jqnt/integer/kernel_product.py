"""Kernels of products with a weight: Conv, Gemm; the parts that MatMul shares."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_last, to_onnx
from jqnt.integer.accumulate import accumulate, convolve, dot, int8_pieces, is_wide, offset
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid, per_tensor
from jqnt.integer.narrow import narrowed
from jqnt.integer.rule import Finish, Rule, Zeros, along_last, container, store
from jqnt.ops.window import window

__all__ = [
    "CONV",
    "GEMM",
    "finish",
    "finishing",
    "product_table",
    "rows",
    "shifted",
    "weighted",
]


def weighted(node: Node, site: Site) -> bool:
    """Whether the data, the weight and the bias of a node are what an integer product reads."""
    data, weight, *bias = node.inputs
    return (
        data in site.grids
        and site.operands.coded(weight) is not None
        and site.operands.static.issuperset(name for name in bias if name)
    )


def _conv_prepare(group: Group, site: Site) -> dict[str, Any]:
    weight = site.operands.coded(group.head.inputs[1])
    assert weight is not None
    centred, scale = weight.channels(0, site.where(group))
    taps = np.moveaxis(centred, (0, 1), (-1, -2))
    return product_table(group, site, taps, scale)


def _conv_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    node, x = group.head, to_last(_first(values)).array
    kernel = table["pieces"][0].shape[:-2]
    view = window(node, x.shape[1:-1], kernel)
    groups = node.attrs.get("group", 1)

    def product(part: Any) -> Any:
        return convolve(part, table["pieces"], view, groups, border)

    border = table["zx"]
    if x.dtype != jnp.int8:
        x, border = _bordered(x, view.pads, border), 0
        view = view._replace(pads=((0, 0),) * len(view.pads))
    return shifted(group, site, table, accumulate(product, x, "wide" in table), x.dtype, True)


def _bordered(x: Any, pads: Any, value: Any) -> Any:
    """Pads an int16 array before it is split into halves."""
    widths = ((0, 0), *pads, (0, 0))
    return jnp.pad(x, widths, constant_values=jnp.asarray(value).astype(x.dtype))


def _gemm_prepare(group: Group, site: Site) -> dict[str, Any]:
    node = group.head
    weight = site.operands.coded(node.inputs[1])
    assert weight is not None
    axis = 0 if node.attrs.get("transB", 0) else 1
    centred, scale = weight.channels(axis, site.where(group))
    matrix = centred.T if axis == 0 else centred
    return product_table(group, site, matrix, scale, node.attrs.get("alpha", 1.0))


def _gemm_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    x = to_onnx(_first(values)).array
    x = x.T if group.head.attrs.get("transA", 0) else x
    return rows(group, site, table, x)


def rows(group: Group, site: Site, table: Any, x: Any) -> Laid:
    """The product of rows of codes with a weight matrix, as codes."""
    acc = accumulate(lambda part: dot(part, table["pieces"]), x, "wide" in table)
    return shifted(group, site, table, acc, x.dtype, False)


def product_table(
    group: Group, site: Site, matrix: np.ndarray, scale: np.ndarray, alpha: float = 1.0
) -> dict[str, Any]:
    """`matrix` holds codes less zero point, outputs last; the key "wide" marks accumulators past
    32 bits, so that it is part of the program and not of its data."""
    x, where = site.grids[group.head.inputs[0]], site.where(group)
    sx, zx = per_tensor(x, where)
    sx = np.float32(alpha) * sx
    summed = tuple(range(matrix.ndim - 1))
    box = container(x.format)  # pyright: ignore[reportArgumentType]
    codes, real = _bias(group, site, sx * scale)
    sums = matrix.sum(summed)
    table = {
        "pieces": int8_pieces(matrix),
        "sums": sums.astype(np.int32),
        "zx": np.int32(zx - box.shift),
        **finishing(group, site, sx, scale, codes, real, Zeros(zx, 0, sums)),
    }
    wide = box.dtype.itemsize > 1
    if wide and not site.arithmetic.wide:
        raise UnsupportedError(f"{where}: this arithmetic has no activations of 16 bits")
    if wide and is_wide(int(np.abs(matrix).sum(summed).max())):
        table["wide"] = ()
    if site.accumulator is not None:
        if "wide" in table:
            raise UnsupportedError(f"{where}: its accumulator needs more than 32 bits as it is")
        table["bias"] = codes.astype(np.int32)
    return table


def finishing(
    group: Group,
    site: Site,
    sx: Any,
    scale: Any,
    codes: np.ndarray,
    real: np.ndarray,
    zeros: Zeros | None = None,
) -> dict[str, Any]:
    """The table of the rule behind an accumulator, and its clamp where it goes to codes.

    `zeros` (its `y` is filled in here) is None where no operand is static.
    """
    y, rule = site.grids.get(group.output), _rule(group, site)
    if y is None:
        return {"rule": rule.prepare(sx, scale, codes, real)}
    sy, zy = per_tensor(y, site.where(group))
    numbers = (sx, scale, sy, codes, real)
    if site.arithmetic.zeros:
        if zeros is None:
            raise UnsupportedError(f"{site.where(group)}: this arithmetic has no such kernel")
        numbers = (*numbers, zeros._replace(y=zy))
    return {"rule": rule.prepare(*numbers), **clamp(group, site)}


def _bias(group: Group, site: Site, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 codes at `scale`, and the real values, one per output."""
    node = group.head
    name = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
    beta = node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0
    if name is not None and beta != 1:
        raise UnsupportedError(f"{site.where(group)}: beta is {beta}; fold it into the bias")
    if name is None:
        return np.zeros(scale.shape, np.int64), np.zeros(scale.shape, np.float32)
    real = np.broadcast_to(site.operands.value(name).reshape(-1), scale.shape)
    return site.operands.bias_codes(name, scale), real


def shifted(group: Group, site: Site, table: Any, acc: Any, dtype: Any, last: bool) -> Laid:
    """The codes of an accumulator of unshifted operands."""
    rank = (acc[0] if isinstance(acc, tuple) else acc).ndim
    acc = offset(acc, along_last(table["sums"], rank), table["zx"], dtype != jnp.int8)
    if site.accumulator is not None:
        acc = narrowed(acc, along_last(table["bias"], rank), site.accumulator)
    return finish(group, site, table, acc, last)


def finish(group: Group, site: Site, table: Any, acc: Any, last: bool) -> Laid:
    """The codes of a finished accumulator, or its reals, outputs along its last axis."""
    rank = (acc[0] if isinstance(acc, tuple) else acc).ndim
    last = last and rank > 2
    rule, numbers = _rule(group, site), along_last(table["rule"], rank)
    if group.output not in site.grids:
        return Laid(rule.apply(acc, numbers), last)
    codes = rule.apply(acc, numbers, out_grid(table, rank, last))
    return Laid(store(codes, site.grids[group.output]), last)


def _rule(group: Group, site: Site) -> Rule:
    rules = _rules(group, site)
    rule = rules.codes if group.output in site.grids else rules.real
    assert rule is not None
    return rule


def _rules(group: Group, site: Site) -> Finish:
    arithmetic, node = site.arithmetic, group.head
    if node.op not in _SPATIAL:
        return Finish(
            arithmetic.dense or arithmetic.requantize, arithmetic.dense_real or arithmetic.real
        )
    weight = site.operands.coded(node.inputs[1])
    if node.op == "Conv" and arithmetic.convolution is not None and weight is not None:
        return arithmetic.convolution(node, weight.codes.shape)
    return Finish(arithmetic.requantize, arithmetic.real)


def _first(values: Sequence[Laid | None]) -> Laid:
    first = values[0]
    assert first is not None
    return first


_SPATIAL = ("Conv", "ConvTranspose")

CONV = Kernel(weighted, _conv_prepare, _conv_run)
GEMM = Kernel(weighted, _gemm_prepare, _gemm_run)
