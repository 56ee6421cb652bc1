"""What every option of every choice costs on a device: tables by fusion group, summed by choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jqnt.errors import BudgetError, ConfigError, UnsupportedError, nearest
from jqnt.formats import Format
from jqnt.npu.assignment import group_pair
from jqnt.npu.devices import Device
from jqnt.npu.tables import tables
from jqnt.npu.workload import Workload
from jqnt.plan import Plan

__all__ = ["UNITS", "Prices", "menu_of", "prices"]

UNITS = {
    "latency_s": (1e3, "ms"),
    "size_bytes": (1e-6, "MB"),
    "energy_j": (1e3, "mJ"),
    "bitops": (1e-9, "GBitOps"),
}
"""Kind of cost -> (factor, unit) for people."""


@dataclass(frozen=True, eq=False)
class Prices:
    """cost[c] = constant[c] + sum over choices of table[c, choice, option].

    `kinds` name the costs ("latency_s", ...), `choices` the rows in order. A table entry is +inf
    where the option is illegal on the device or does not exist.
    """

    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    table: np.ndarray
    constant: np.ndarray

    def cost(self, assignment: Sequence[int] | np.ndarray) -> np.ndarray:
        """The cost of one option per choice, float64 [kinds]."""
        rows = np.arange(len(self.choices))
        return self.constant + self.table[:, rows, np.asarray(assignment, int)].sum(1)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most that any legal assignment costs, each kind by itself."""
        most = np.where(np.isfinite(self.table), self.table, -np.inf).max(2).sum(1)
        return self.constant + self.table.min(2).sum(1), self.constant + most

    def check(self, budget: Sequence[float] | np.ndarray) -> np.ndarray:
        """The budgets less the constants, [kinds]; BudgetError, with the minimum, where one is
        below what the cheapest options cost."""
        if len(budget) != len(self.kinds):
            raise ConfigError(f"{len(budget)} budgets for {', '.join(self.kinds)}")
        for kind, limit, least in zip(self.kinds, budget, self.range()[0], strict=True):
            if not limit >= least * (1 - 1e-9):
                factor, unit = UNITS[kind]
                raise BudgetError(
                    f"the {kind.split('_')[0]} budget {limit * factor:.6g} {unit} is below the "
                    f"minimum {least * factor:.6g} {unit} of all legal plans; raise it to that"
                )
        return np.asarray(budget, np.float64) - self.constant


def menu_of(device: Device) -> list[tuple[str, str]]:
    """The (weight, activation) formats of a device's pairs, for `with_choices`."""
    return [
        (
            pair.floating if pair.floating and pair.weight_bits == pair.activation_bits
            else f"int{pair.weight_bits}",
            pair.floating or f"int{pair.activation_bits}",
        )
        for pair in device.pairs
    ]  # fmt: skip


def prices(
    plan: Plan,
    workload: Workload,
    device: Device,
    kinds: Sequence[str] = ("latency_s",),
) -> Prices:
    """The prices of a plan's choices, from the device's tables by fusion group.

    A group is priced by the formats of its weight and of its first quantized input, as
    `npu.latency` does with encodings; if no choice covers them it is part of the constant.
    Raises ConfigError for an unknown kind of cost and for a choice without a legal option, and
    UnsupportedError for a group whose formats two choices decide: no table of one choice holds
    its price.
    """
    for kind in kinds:
        if kind not in UNITS:
            raise ConfigError(f"no kind of cost {kind!r}{nearest(kind, UNITS)}")
        if kind == "energy_j" and not device.energy_j:
            raise ConfigError(f"the profile of {device.name} has no energies to budget")
    table = tables(workload, device)
    costs = np.stack([np.asarray(getattr(table, kind), np.float64) for kind in kinds])
    formats = _formats(plan, {name: spec.format for name, spec in plan.specs.items()})
    owner = {t: name for name, choice in plan.choices.items() for t in choice.tensors}
    for tensor, leader in plan.tied.items():
        if leader in owner:
            owner[tensor] = owner[leader]
    width = max(len(choice.options) for choice in plan.choices.values())
    found = np.full((len(kinds), len(plan.choices), width), np.inf)
    constant = np.array([float(table.constant_s) if k == "latency_s" else 0.0 for k in kinds])
    for row, choice in enumerate(plan.choices.values()):
        found[:, row, : len(choice.options)] = 0
    rows = {name: row for row, name in enumerate(plan.choices)}
    for group in range(len(workload.groups)):
        deciding = _deciding(workload, group, formats, owner)
        if len(deciding) > 1:
            raise UnsupportedError(
                f"group {workload.groups[group]!r}: its formats are decided by the choices "
                f"{' and '.join(map(repr, deciding))}; they must be one"
            )
        if not deciding:
            constant += _price(workload, group, formats, device, costs)
        for name in deciding:
            choice = plan.choices[name]
            for k, option in enumerate(choice.options):
                own = dict(zip(choice.tensors, (spec.format for spec in option), strict=True))
                changed = {**formats, **_formats(plan, own)}
                try:
                    found[:, rows[name], k] += _price(workload, group, changed, device, costs)
                except ConfigError:  # the device has no such pair: this option is illegal
                    found[:, rows[name], k] = np.inf
    for name, row in rows.items():
        if not np.isfinite(found[:, row]).all(0).any():
            raise ConfigError(f"{device.name} can run none of the options of choice {name!r}")
    return Prices(tuple(kinds), tuple(plan.choices), found, constant)


def _formats(plan: Plan, formats: Mapping[str, Format]) -> dict[str, Format]:
    """`formats`, and those of the tensors that are tied to theirs."""
    tied = {t: formats[leader] for t, leader in plan.tied.items() if leader in formats}
    return {**formats, **tied}


def _deciding(
    workload: Workload, group: int, formats: Mapping[str, Format], owner: Mapping[str, str]
) -> list[str]:
    """The choices that the group's weight and its first quantized input belong to."""
    inputs = [name for name in workload.inputs[group] if name in formats][:1]
    weight = [workload.weights[group]] if workload.weights[group] in formats else []
    return list(dict.fromkeys(owner[name] for name in (*weight, *inputs) if name in owner))


def _price(
    workload: Workload,
    group: int,
    formats: Mapping[str, Format],
    device: Device,
    costs: np.ndarray,
) -> np.ndarray:
    """[kinds]; ConfigError where the device has no such pair."""
    pair = device.pair(group_pair(workload, group, formats, device).name)
    return costs[:, group, device.pairs.index(pair)]
