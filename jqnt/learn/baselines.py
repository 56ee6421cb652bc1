"""Allocations that search is compared with: uniform, greedy, by ranking, the worst share raised."""

from collections.abc import Sequence

import numpy as np

from jqnt.errors import BudgetError, ConfigError
from jqnt.formats import Format, Integer, format_named
from jqnt.learn.hull import check_budget, check_tables, with_tolerance
from jqnt.plan import Plan

__all__ = ["aligned", "greedy", "ranked", "uniform", "worst_share"]


def aligned(plan: Plan, menu: Sequence[tuple[Format | str, Format | str]]) -> np.ndarray:
    """Which option of each choice is each (weight, activation) pair of `menu`: int [choices,
    pairs], -1 where a choice has none. A choice without weights, or without activations, goes by
    what it has. Tables indexed with it have columns that mean the same in every row."""
    found = np.full((len(plan.choices), len(menu)), -1)
    for row, choice in enumerate(plan.choices.values()):
        for column, pair in enumerate(menu):
            wanted: dict[str, tuple[str, int]] = {}
            wanted |= zip(("weight", "activation"), map(_kind, pair), strict=True)
            for k, option in enumerate(choice.options):
                if all(_kind(spec.format) == wanted.get(spec.role) for spec in option):
                    found[row, column] = k
                    break
    return found


def _kind(fmt: Format | str) -> tuple[str, int]:
    """Width and family of a format; signs and symmetry are the plan's."""
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    return ("int" if isinstance(fmt, Integer) else fmt.name, fmt.bits)


def uniform(loss: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """The best single option for all groups within the budget.

    Columns must mean the same in every group; a group that lacks the option takes its cheapest
    one. Raises BudgetError if no uniform allocation fits.
    """
    legal = check_tables(loss, cost)
    rows = np.arange(len(loss))
    cheapest = np.where(legal, cost, np.inf).argmin(1)
    plans = [np.where(legal[:, k], k, cheapest) for k in range(loss.shape[1]) if legal[:, k].any()]
    fitting = [p for p in plans if cost[rows, p].sum() <= with_tolerance(budget)]
    if not fitting:
        least = min(cost[rows, p].sum() for p in plans)
        raise BudgetError(
            f"the budget {budget:.6g} is below the minimum {least:.6g} of all uniform allocations"
        )
    return min(fitting, key=lambda p: loss[rows, p].sum())


def greedy(loss: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """From the best options down: AIMET's automatic mixed precision, phase 2, to a budget.

    `loss[g, k]` is the loss with group g alone at option k. The entries are gone through from
    the least loss to the most; each that makes its group cheaper is taken, until the budget
    holds.
    """
    legal = check_tables(loss, cost)
    check_budget(cost, legal, budget)
    choice, rows = _best(loss, cost, legal), np.arange(len(loss))
    entries = sorted(zip(*np.nonzero(legal), strict=True), key=lambda gk: loss[gk])
    for g, k in entries:
        if cost[rows, choice].sum() <= with_tolerance(budget):
            break
        if cost[g, k] < cost[g, choice[g]]:
            choice[g] = k
    return choice


def ranked(
    loss: np.ndarray, cost: np.ndarray, budget: float, score: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Least sensitive first: groups in order of `score` give up precision until the budget holds.

    Each turn lowers every group once, in that order, to the next cheaper option that is not
    dominated (HAWQ, Dong et al. 2019, with the scores of HAWQ-V2: the mean Hessian eigenvalue).
    """
    legal = check_tables(loss, cost)
    check_budget(cost, legal, budget)
    choice, rows = _best(loss, cost, legal), np.arange(len(loss))
    while cost[rows, choice].sum() > with_tolerance(budget):
        for g in np.argsort(np.asarray(score), kind="stable"):
            cheaper = legal[g] & (cost[g] < cost[g, choice[g]])
            if cheaper.any():
                choice[g] = np.where(cheaper, loss[g], np.inf).argmin()
            if cost[rows, choice].sum() <= with_tolerance(budget):
                break
    return choice


def worst_share(
    sqnr_db: Sequence[float] | np.ndarray, low: np.ndarray, high: np.ndarray, share: float = 0.2
) -> np.ndarray:
    """Option `low[g]` for every group, `high[g]` for the worst `share` of them by SQNR.

    The usual recipe: 8 bits, and 16 for the 20 % of layers with the most noise.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share lies between 0 and 1, not {share}")
    count = round(share * len(low))
    choice = np.array(low)
    worst = np.argsort(np.asarray(sqnr_db), kind="stable")[:count]
    choice[worst] = np.asarray(high)[worst]
    return choice


def _best(loss: np.ndarray, cost: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """The option of least loss of each group, the cheapest of equals."""
    least = np.where(legal, loss, np.inf).min(1, keepdims=True)
    return np.where(legal & (loss <= least), cost, np.inf).argmin(1)
