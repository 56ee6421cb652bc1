"""Kernels that join tensors: Add, Sub, Mul, Concat."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, align
from jqnt.graph.lower import call
from jqnt.integer.group import Group, Kernel, Site, clamp, out_grid, per_tensor
from jqnt.integer.rule import Out, Rule, container, store, true_codes

__all__ = ["ADD", "CONCAT", "MUL", "SUB", "rescaled", "rescaling"]


def _pair_ready(node: Node, site: Site) -> bool:
    """Two activations, or one and a static tensor with one scale."""
    return len(node.inputs) == 2 and all(
        name in site.grids or site.operands.coded(name) is not None for name in node.inputs
    )


def _pair_grids(group: Group, site: Site) -> list[Encoding]:
    grids = []
    for name in group.head.inputs:
        grid = site.grids.get(name) or site.operands.encodings[name]
        per_tensor(grid, site.where(group))
        grids.append(grid)
    return grids


def _is_wide(group: Group, site: Site) -> bool:
    grids = [*_pair_grids(group, site), site.grids[group.output]]
    return any(grid.format.bits > 8 for grid in grids)


def _pair_prepare(rule_of: Any):
    def prepare(group: Group, site: Site) -> dict[str, Any]:
        a, b = _pair_grids(group, site)
        rule: Rule | None = rule_of(site, _is_wide(group, site))
        if rule is None:
            raise UnsupportedError(
                f"{site.where(group)}: this arithmetic has no such kernel for "
                f"{a.format.name}, {b.format.name} -> {site.grids[group.output].format.name}"
            )
        _check_relu(group, site)
        table = {"rule": rule.prepare(a, b, site.grids[group.output]), **clamp(group, site)}
        for i, (name, grid) in enumerate(zip(group.head.inputs, (a, b), strict=True)):
            if name not in site.grids:
                coded = site.operands.coded(name)
                assert coded is not None and isinstance(grid.format, Integer)
                box = container(grid.format)
                table[f"operand{i}"] = (coded.codes - box.shift).astype(box.dtype)
        return table

    return prepare


def _check_relu(group: Group, site: Site) -> None:
    _, zero_point = per_tensor(site.grids[group.output], site.where(group))
    clamps = [node for node in group.nodes[1:] if node.op != "Identity"]
    if site.arithmetic.relu_at_zero and clamps and zero_point:
        raise UnsupportedError(
            f"{site.where(group)}: {site.arithmetic.name} clamps the {clamps[0].op} behind it at "
            f"code 0, not at {group.output!r}'s zero point {zero_point}: make that grid symmetric"
        )


def _pair_run(rule_of: Any):
    def run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
        laid = [
            Laid(jnp.asarray(table[f"operand{i}"])) if f"operand{i}" in table else value
            for i, value in enumerate(values)
        ]
        arrays, last = align(list(laid))
        grids = _pair_grids(group, site)
        codes = [true_codes(x, grid) for x, grid in zip(arrays, grids, strict=True)]
        shape = jnp.broadcast_shapes(*(c.shape for c in codes))
        a, b = (jnp.broadcast_to(c, shape) for c in codes)
        out, wide = out_grid(table, len(shape), last), _is_wide(group, site)
        return Laid(
            store(rule_of(site, wide).apply(a, b, table["rule"], out), _y(group, site)), last
        )

    return run


def rescaling(x: Encoding, y: Encoding, site: Site, where: str) -> dict[str, Any] | None:
    """The table that moves codes from grid x to grid y; None where the grids are equal."""
    (sx, zx), (sy, zy) = per_tensor(x, where), per_tensor(y, where)
    if (sx, zx, x.format) == (sy, zy, y.format):
        return None
    if site.arithmetic.rescale is None:
        raise UnsupportedError(f"{where}: this arithmetic cannot move codes to another grid")
    return site.arithmetic.rescale.prepare(sx, zx, sy)


def rescaled(x: Any, grid: Encoding, y: Encoding, table: Any, site: Site, out: Out) -> Any:
    """The codes of `x` on grid y, clamped, in y's container."""
    codes = true_codes(x, grid)
    if table is None or site.arithmetic.rescale is None:
        return store(jnp.clip(codes, out.low, out.high), y)
    return store(site.arithmetic.rescale.apply(codes, table, out), y)


def _concat_ready(node: Node, site: Site) -> bool:
    return all(name in site.grids for name in node.inputs)


def _concat_prepare(group: Group, site: Site) -> dict[str, Any]:
    y, where = site.grids[group.output], site.where(group)
    rules = [rescaling(site.grids[n], y, site, where) for n in group.head.inputs]
    return {"rules": rules, **clamp(group, site)}


def _concat_run(group: Group, site: Site, table: Any, values: Sequence[Laid | None]) -> Laid:
    out, y = Out(table["zero_point"], table["low"], table["high"]), _y(group, site)
    moved: list[Laid | None] = []
    for name, value, rule in zip(group.head.inputs, values, table["rules"], strict=True):
        assert value is not None
        grid = site.grids[name]
        same = rule is None and grid.format == y.format
        moved.append(
            value if same else value._replace(array=rescaled(value.array, grid, y, rule, site, out))
        )
    return call(group.head, moved)[0]


def _y(group: Group, site: Site) -> Encoding:
    return site.grids[group.output]


def _pair(rule_of: Callable[[Site, bool], Rule | None]) -> Kernel:
    return Kernel(_pair_ready, _pair_prepare(rule_of), _pair_run(rule_of))


ADD = _pair(lambda site, wide: site.arithmetic.wide_add if wide else site.arithmetic.add)
SUB = _pair(lambda site, wide: site.arithmetic.sub if site.arithmetic.wide or not wide else None)
MUL = _pair(lambda site, wide: site.arithmetic.wide_mul if wide else site.arithmetic.mul)
CONCAT = Kernel(_concat_ready, _concat_prepare, _concat_run)
