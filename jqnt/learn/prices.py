"""What every option of every choice costs on a device: tables by fusion group, summed by choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jqnt.errors import BudgetError, ConfigError, UnsupportedError, nearest
from jqnt.formats import Format
from jqnt.learn.milp import Coupling
from jqnt.npu.assignment import group_pair
from jqnt.npu.conversions import conversions
from jqnt.npu.devices import Device
from jqnt.npu.tables import costs
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
    """cost[c] = constant[c] + sum over choices of table[c, choice, option] + couplings.

    `kinds` name the costs ("latency_s", ...), `choices` the rows in order. A table entry is +inf
    where the option is illegal on the device or does not exist. A coupling adds what two choices
    cost together: conversions where the precision changes between them.
    """

    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    table: np.ndarray
    constant: np.ndarray
    couplings: tuple[Coupling, ...] = ()

    def cost(self, assignment: Sequence[int] | np.ndarray) -> np.ndarray:
        """The cost of one option per choice, float64 [kinds]."""
        return self.costs(np.asarray(assignment, int)[None])[:, 0]

    def costs(self, assignments: np.ndarray) -> np.ndarray:
        """The costs of many assignments, int [plans, choices]: float64 [kinds, plans]."""
        total = self.table[:, np.arange(len(self.choices)), assignments].sum(2)
        for c in self.couplings:
            total[c.constraint] += c.cost[assignments[:, c.first], assignments[:, c.second]]
        return self.constant[:, None] + total

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most that any legal assignment costs, each kind by itself; with
        couplings, which not all can be least or most at once, bounds of these."""
        low = self.constant + self.table.min(2).sum(1)
        high = np.where(np.isfinite(self.table), self.table, -np.inf).max(2).sum(1)
        high = self.constant + high
        for c in self.couplings:
            low[c.constraint] += c.cost.min()
            high[c.constraint] += c.cost.max()
        return low, high

    def check(self, budget: Sequence[float] | np.ndarray) -> np.ndarray:
        """The budgets less the constants, [kinds]; BudgetError, with the minimum, where one is
        below what the cheapest options cost. A budget that is the minimum but for the rounding of
        float32 (1e-6 of it), in which latencies come, is the minimum."""
        if len(budget) != len(self.kinds):
            raise ConfigError(f"{len(budget)} budgets for {', '.join(self.kinds)}")
        minimum = self.range()[0]
        for kind, limit, least in zip(self.kinds, budget, minimum, strict=True):
            if not limit >= least * (1 - 1e-6):
                factor, unit = UNITS[kind]
                raise BudgetError(
                    f"the {kind.split('_')[0]} budget {limit * factor:.6g} {unit} is below the "
                    f"minimum {least * factor:.6g} {unit} of all legal plans; raise it to that"
                )
        return np.maximum(np.asarray(budget, np.float64), minimum) - self.constant


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
    *,
    converting: bool = False,
) -> Prices:
    """The prices of a plan's choices, from the device's tables by fusion group.

    A group is priced by the formats of its weight and of its first quantized input, as
    `npu.latency` does with encodings; if no choice covers them it is part of the constant.
    `converting` adds to the latency what `npu.conversion_latency` says of changes of format
    between groups: couplings of the choices on both sides. Raises ConfigError for an unknown kind
    of cost, for energy on a device without its figures and for a choice without a legal option;
    UnsupportedError for a group whose formats two choices decide: no table of one choice holds
    its price.
    """
    for kind in kinds:
        if kind not in UNITS:
            raise ConfigError(f"no kind of cost {kind!r}{nearest(kind, UNITS)}")
        if kind == "energy_j" and not device.energy_j:
            raise ConfigError(
                f"{device.name} has no figures of energy, so it cannot be a budget; add an "
                f"[energy_j] table to a copy of its profile, or take another budget"
            )
    table, constant_s = (
        np.asarray(x, np.float64) for x in costs(workload, device, kinds=tuple(kinds))
    )
    formats = _formats(plan, {name: spec.format for name, spec in plan.specs.items()})
    width = max(len(choice.options) for choice in plan.choices.values())
    found = np.full((len(kinds), len(plan.choices), width), np.inf)
    constant = np.array([float(constant_s) if k == "latency_s" else 0.0 for k in kinds])
    for row, choice in enumerate(plan.choices.values()):
        found[:, row, : len(choice.options)] = 0
    runs = [_runs(plan, workload, group, formats, device) for group in range(len(workload.groups))]
    for group, (row, columns) in enumerate(runs):
        if row < 0:
            constant += table[:, group, columns[0]]
            continue
        for k, column in enumerate(columns):
            # the device has no such pair: this option is illegal
            found[:, row, k] += table[:, group, column] if column >= 0 else np.inf
    couplings = ()
    if converting and "latency_s" in kinds:
        kind = list(kinds).index("latency_s")
        couplings = _conversions(workload, device, runs, found[kind], constant, kind)
    for row, name in enumerate(plan.choices):
        if not np.isfinite(found[:, row]).all(0).any():
            raise ConfigError(f"{device.name} can run none of the options of choice {name!r}")
    return Prices(tuple(kinds), tuple(plan.choices), found, constant, couplings)


Runs = tuple[int, list[int]]
"""The choice that decides a group (-1: none), and the device's pair under each of its options
(-1: the device has none such)."""


def _runs(
    plan: Plan, workload: Workload, group: int, formats: Mapping[str, Format], device: Device
) -> Runs:
    owner = {t: name for name, choice in plan.choices.items() for t in choice.tensors}
    for tensor, leader in plan.tied.items():
        if leader in owner:
            owner[tensor] = owner[leader]
    deciding = _deciding(workload, group, formats, owner)
    if len(deciding) > 1:
        raise UnsupportedError(
            f"group {workload.groups[group]!r}: its formats are decided by the choices "
            f"{' and '.join(map(repr, deciding))}; they must be one"
        )
    if not deciding:
        return -1, [_column(workload, group, formats, device)]
    choice, columns = plan.choices[deciding[0]], []
    for option in choice.options:
        own = dict(zip(choice.tensors, (spec.format for spec in option), strict=True))
        try:
            columns.append(_column(workload, group, {**formats, **_formats(plan, own)}, device))
        except ConfigError:
            columns.append(-1)
    return list(plan.choices).index(deciding[0]), columns


def _conversions(
    workload: Workload,
    device: Device,
    runs: Sequence[Runs],
    table: np.ndarray,
    constant: np.ndarray,
    kind: int,
) -> tuple[Coupling, ...]:
    """Couplings of two choices; what one choice decides alone is added to `table`, what none
    does to `constant`."""
    edges = conversions(workload, device)
    pairwise: dict[tuple[int, int], np.ndarray] = {}
    for cost, a, b in zip(
        np.asarray(edges.latency_s, np.float64), edges.producer, edges.consumer, strict=True
    ):
        (first, p), (second, q) = runs[int(a)], runs[int(b)]
        matrix = cost[np.ix_(np.maximum(p, 0), np.maximum(q, 0))]
        if first < 0 and second < 0:
            constant[kind] += matrix[0, 0]
        elif first < 0 or second < 0 or first == second:
            row, own = max(first, second), np.diagonal(matrix) if first == second else matrix
            table[row, : own.size] += own.reshape(-1)
        else:
            if first > second:
                first, second, matrix = second, first, matrix.T
            shape = (table.shape[1], table.shape[1])
            whole = pairwise.setdefault((first, second), np.zeros(shape))
            whole[: matrix.shape[0], : matrix.shape[1]] += matrix
    return tuple(
        Coupling(first, second, matrix, kind)
        for (first, second), matrix in pairwise.items()
        if matrix.any()
    )


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


def _column(workload: Workload, group: int, formats: Mapping[str, Format], device: Device) -> int:
    """The index of the group's pair; ConfigError where the device has no such pair."""
    pair = device.pair(group_pair(workload, group, formats, device).name)
    return device.pairs.index(pair)
