"""Allocation under several budgets at once, or with costs that couple pairs of groups: HiGHS."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, milp
from scipy.sparse import coo_array, csr_array, vstack

from jqnt.errors import BudgetError, DataError
from jqnt.learn.allocate import Allocation
from jqnt.learn.certificate import certify
from jqnt.learn.hull import check_tables, with_tolerance

__all__ = ["Coupling", "allocate_milp"]

_CUTS = 30


class Coupling(NamedTuple):
    """cost[k, l] on `constraint` if `first` takes option k and `second` takes option l."""

    first: int
    second: int
    cost: np.ndarray
    constraint: int = 0


def allocate_milp(
    loss: np.ndarray,
    cost: np.ndarray,
    budget: Sequence[float] | np.ndarray,
    couplings: Sequence[Coupling] = (),
    units: Sequence[str] = (),
) -> Allocation:
    """min sum_g loss[g, k_g] with, for each constraint c, its costs and couplings <= budget[c].

    `loss` is [groups, options], `cost` [constraints, groups, options], +inf where illegal.
    x[g, k] is binary, sum_k x[g, k] = 1; a coupling adds y[k, l] >= 0 whose marginals are
    x[first] and x[second]. Solved by HiGHS with gap 0; a solution that only its feasibility
    tolerance lets through is cut off and the program solved again. Raises BudgetError with the
    minimum of each constraint if there is no solution, DataError for bad tables.
    """
    loss, cost = np.asarray(loss, np.float64), np.asarray(cost, np.float64)
    if cost.ndim != 3 or len(budget) != len(cost):
        raise DataError(
            f"{len(budget)} budgets for costs of shape {cost.shape}; expected "
            "[constraints, groups, options] and one budget per constraint"
        )
    legal = check_tables(loss, cost)
    limits = np.asarray(budget, np.float64)
    program = _program(cost, couplings, legal)
    objective = np.zeros(program.table.shape[1])
    objective[: len(program.group)] = loss[program.group, program.option]
    choice, exact = _solve(program, objective, limits)
    if choice is None:
        raise BudgetError(_infeasible(program, limits, units))
    spent = _costs_of(program, choice)
    # couplings can only add to their least entries, so the bound without them holds
    least = np.zeros(len(cost))
    for c in couplings:
        least[c.constraint] += c.cost.min()
    proof = certify(loss, cost, limits - least, choice, exact)
    proof = replace(proof, exact=exact)
    return Allocation(choice, proof.loss, tuple(spent.tolist()), proof)


class _Program(NamedTuple):
    """The rows of the integer program; the objective and the budgets come with `_solve`.

    Columns: x[group[i], option[i]] for i = 0, 1, ..., then the couplings' y. `equal` @ columns
    = `sums`; `table` @ columns are the costs.
    """

    cost: np.ndarray
    couplings: Sequence[Coupling]
    group: np.ndarray
    option: np.ndarray
    equal: csr_array
    sums: np.ndarray
    table: np.ndarray


def _program(cost: np.ndarray, couplings: Sequence[Coupling], legal: np.ndarray) -> _Program:
    group, option = np.nonzero(legal)
    index = np.full(legal.shape, -1)
    index[group, option] = np.arange(len(group))
    entries = [(int(g), column, 1.0) for column, g in enumerate(group)]
    sums, size = [1.0] * len(legal), len(group)
    extra: list[tuple[int, int, float]] = []
    for c in couplings:
        first, second = np.flatnonzero(legal[c.first]), np.flatnonzero(legal[c.second])
        y = size + np.arange(len(first) * len(second)).reshape(len(first), len(second))
        size += y.size
        margins = zip((*y, *y.T), (*index[c.first, first], *index[c.second, second]), strict=True)
        for members, x in margins:
            entries += [(len(sums), int(column), 1.0) for column in members]
            entries.append((len(sums), int(x), -1.0))
            sums.append(0.0)
        values = np.asarray(c.cost)[np.ix_(first, second)]
        extra += zip(
            [c.constraint] * y.size, y.ravel().tolist(), values.ravel().tolist(), strict=True
        )
    rows, columns, values = zip(*entries, strict=True)
    table = np.zeros((len(cost), size))
    table[:, : len(group)] = cost[:, group, option]
    for constraint, column, value in extra:
        table[constraint, column] = value
    equal = csr_array(coo_array((values, (rows, columns)), shape=(len(sums), size)))
    return _Program(cost, couplings, group, option, equal, np.array(sums), table)


def _costs_of(program: _Program, choice: np.ndarray) -> np.ndarray:
    spent = program.cost[:, np.arange(len(choice)), choice].sum(1)
    for c in program.couplings:
        spent[c.constraint] += c.cost[choice[c.first], choice[c.second]]
    return spent


def _solve(
    program: _Program, objective: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray | None, bool]:
    """(choice or None, exact) of the least objective, one value per column, within the limits."""
    finite = np.isfinite(limits)
    unit = np.where(finite & (limits != 0), np.abs(limits), 1.0)
    rows, tops = csr_array(program.table[finite] / unit[finite, None]), (limits / unit)[finite]
    allowed = np.array([with_tolerance(b) for b in limits])
    count, size = len(program.group), program.table.shape[1]
    for attempt in range(_CUTS + 1):
        exact = attempt < _CUTS
        found = milp(
            objective / max(float(np.abs(objective).max()), 1e-300),
            integrality=(np.arange(size) < count).astype(int),
            bounds=Bounds(0, 1),
            constraints=[
                (program.equal, program.sums, program.sums),
                (rows, np.full(len(tops), -np.inf), tops if exact else tops - 3e-6),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            return None, exact
        value = np.full(program.cost.shape[1:], -1.0)
        value[program.group, program.option] = found.x[:count]
        choice = value.argmax(1)
        if (_costs_of(program, choice) <= allowed).all():
            return choice, exact and found.status == 0
        cut = choice[program.group] == program.option
        rows = vstack([rows, csr_array(np.append(cut, np.zeros(size - count))[None])], format="csr")
        tops = np.append(tops, len(choice) - 1)
    return None, False


def _infeasible(program: _Program, limits: np.ndarray, units: Sequence[str]) -> str:
    """One line: each budget beside the least it needs when the others are ignored."""
    parts = []
    for c, limit in enumerate(limits):
        unit = units[c] if c < len(units) else ""
        choice, _ = _solve(program, program.table[c], np.full(len(limits), np.inf))
        least = np.nan if choice is None else _costs_of(program, choice)[c]
        parts.append(f"budget {limit:.6g}{unit}, minimum {least:.6g}{unit}")
    return (
        f"no allocation meets the {len(limits)} budgets together ({'; '.join(parts)}); each "
        "minimum is that of its constraint alone: raise the budgets"
    )
