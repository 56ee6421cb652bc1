"""Exact allocation along a chain, where neighbours of different precision pay a conversion."""

from typing import NamedTuple

import numpy as np

from jqnt.errors import BudgetError, DataError
from jqnt.learn.allocate import Allocation
from jqnt.learn.certificate import Certificate
from jqnt.learn.hull import check_tables, with_tolerance

__all__ = ["allocate_chain"]

_BISECTIONS = 60
_FACTORS = np.array([0.0, 0.5, 0.8, 1.0, 1.25, 2.0])


class _Suffix(NamedTuple):
    """Best priced, and that path's cost and loss, [groups, options]: what follows the group."""

    priced: np.ndarray
    cost: np.ndarray
    loss: np.ndarray
    following: np.ndarray


def allocate_chain(
    loss: np.ndarray, cost: np.ndarray, conversion: np.ndarray, budget: float, unit: str = ""
) -> Allocation:
    """min sum_g loss[g, k_g] with sum_g cost[g, k_g] + sum_g conversion[g, k_g, k_g+1] <= budget.

    `conversion` is [groups - 1, options, options], finite. Dynamic programming over (group,
    option at the boundary, Pareto front of (cost, loss)); a state is dropped where Lagrangian
    bounds of its rest, exact shortest paths for a few multipliers, exceed the best completion
    known. The certificate's bound is min over paths of loss + lambda * cost, less lambda *
    budget. Raises BudgetError, with the minimum, and DataError.
    """
    loss, cost = np.asarray(loss, np.float64), np.asarray(cost, np.float64)
    conversion = np.asarray(conversion, np.float64)
    legal = check_tables(loss, cost)
    groups, options = loss.shape
    if conversion.shape != (groups - 1, options, options) or not np.isfinite(conversion).all():
        raise DataError(
            f"conversion costs of shape {conversion.shape}; expected finite numbers of shape "
            f"{(groups - 1, options, options)}"
        )
    loss, cost = np.where(legal, loss, np.inf), np.where(legal, cost, 0.0)
    cheapest = _suffix(np.where(legal, 0.0, np.inf), cost, conversion, 1.0)
    minimum = float((np.where(legal[0], cost[0], np.inf) + cheapest.cost[0]).min())
    if not minimum <= with_tolerance(budget):
        raise BudgetError(
            f"the budget {budget:.6g}{unit} is below the minimum {minimum:.6g}{unit} that the "
            "cheapest legal chain needs; raise it to at least that"
        )
    multiplier, choice = _lagrangian(loss, cost, conversion, budget, cheapest)
    suffixes = [_suffix(loss, cost, conversion, m) for m in multiplier * _FACTORS]
    suffixes.append(cheapest._replace(loss=_loss_along(loss, cheapest.following)))
    own = float(loss[np.arange(groups), choice].sum())
    choice = _search(loss, cost, conversion, budget, multiplier * _FACTORS, suffixes, own, choice)
    total = float(loss[np.arange(groups), choice].sum())
    bound = max(
        float((loss[0] + m * cost[0] + s.priced[0]).min() - m * budget)
        for m, s in zip(multiplier * _FACTORS, suffixes[:-1], strict=True)
    )
    proof = Certificate(total, bound, (float(multiplier),), exact=True)
    return Allocation(choice, total, (_cost_of(choice, cost, conversion),), proof)


def _suffix(loss, cost, conversion, multiplier: float) -> _Suffix:
    """Shortest paths from every (group, option) to the end, priced loss + multiplier * cost."""
    priced, spent, lost = np.zeros_like(loss), np.zeros_like(loss), np.zeros_like(loss)
    following = np.zeros(loss.shape, np.int64)
    for g in range(len(loss) - 2, -1, -1):
        step = conversion[g] + cost[g + 1]
        total = multiplier * step + loss[g + 1] + priced[g + 1]
        best = following[g] = total.argmin(1)
        rows = np.arange(len(best))
        priced[g] = total[rows, best]
        spent[g] = step[rows, best] + spent[g + 1, best]
        lost[g] = loss[g + 1, best] + lost[g + 1, best]
    return _Suffix(priced, spent, lost, following)


def _loss_along(loss, following) -> np.ndarray:
    lost = np.zeros_like(loss)
    for g in range(len(loss) - 2, -1, -1):
        best = following[g]
        lost[g] = loss[g + 1, best] + lost[g + 1, best]
    return lost


def _lagrangian(loss, cost, conversion, budget, cheapest) -> tuple[float, np.ndarray]:
    """The multiplier of the best dual bound, and the best path within budget on the way."""
    legal = np.isfinite(loss)
    choice = _follow(int(np.where(legal[0], cost[0] + cheapest.cost[0], np.inf).argmin()), cheapest)
    finite = loss[legal]
    low, high = 0.0, (np.ptp(finite) * len(loss) + 1e-30) / max(np.ptp(cost[legal]), 1e-300)
    for _ in range(_BISECTIONS):
        middle = high / 2 if low == 0 else (low + high) / 2
        suffix = _suffix(loss, cost, conversion, middle)
        path = _follow(int((loss[0] + middle * cost[0] + suffix.priced[0]).argmin()), suffix)
        if _cost_of(path, cost, conversion) <= with_tolerance(budget):
            high = middle
            if _total(loss, path) < _total(loss, choice):
                choice = path
        else:
            low = middle
    return high, choice


def _search(loss, cost, conversion, budget, multipliers, suffixes, upper, known) -> np.ndarray:
    slack = 1e-12 * (abs(upper) + np.abs(loss[np.isfinite(loss)]).max())
    limit = with_tolerance(budget)
    last = np.flatnonzero(np.isfinite(loss[0]))
    spent, lost = cost[0, last], loss[0, last]
    trail = [(np.zeros(len(last), np.int64), last)]
    for g in range(len(loss)):
        if g:
            options = np.flatnonzero(np.isfinite(loss[g]))
            step = conversion[g - 1][np.ix_(last, options)] + cost[g, options]
            spent = (spent[:, None] + step).ravel()
            lost = (lost[:, None] + loss[g, options]).ravel()
            trail.append(
                (np.repeat(np.arange(len(last)), len(options)), np.tile(options, len(last)))
            )
            last = trail[-1][1]
        bound = np.full(len(last), -np.inf)
        for m, s in zip(multipliers, suffixes, strict=False):
            bound = np.maximum(bound, lost + s.priced[g, last] - m * (limit - spent))
        for s in suffixes:
            fits = spent + s.cost[g, last] <= limit
            upper = min(upper, float((lost + s.loss[g, last])[fits].min(initial=np.inf)))
        fits = spent + suffixes[-1].cost[g, last] <= with_tolerance(budget, 2)
        kept = np.flatnonzero(fits & (bound <= upper + slack))
        order = kept[np.lexsort((lost[kept], spent[kept], last[kept]))]
        kept = order[_fronts(last[order], lost[order], slack)]
        parent, option = trail[-1]
        trail[-1] = (parent[kept], option[kept])
        spent, lost, last = spent[kept], lost[kept], last[kept]
    if not len(lost) or lost.min() > _total(loss, known):
        return known
    state = int(lost.argmin())
    choice = np.empty(len(loss), np.int64)
    for g in range(len(loss) - 1, -1, -1):
        parent, option = trail[g]
        choice[g], state = option[state], parent[state]
    return choice


def _fronts(last: np.ndarray, lost: np.ndarray, slack: float) -> np.ndarray:
    """Which states, sorted by (option, cost), no earlier one of the same option dominates."""
    kept = np.zeros(len(last), bool)
    for option in np.unique(last):
        own = np.flatnonzero(last == option)
        earlier = np.concatenate(([np.inf], np.minimum.accumulate(lost[own])[:-1]))
        kept[own] = lost[own] < earlier - slack
    return kept


def _follow(first: int, suffix: _Suffix) -> np.ndarray:
    path = [first]
    for following in suffix.following[:-1]:
        path.append(int(following[path[-1]]))
    return np.array(path)


def _cost_of(path, cost, conversion) -> float:
    own = cost[np.arange(len(path)), path].sum()
    return float(own + conversion[np.arange(len(path) - 1), path[:-1], path[1:]].sum())


def _total(loss, path) -> float:
    return float(loss[np.arange(len(path)), path].sum())
