"""The exact multiple-choice knapsack: one option per group, least loss within one budget."""

from dataclasses import dataclass, replace

import numpy as np

from jqnt.errors import DataError
from jqnt.learn.certificate import Certificate, certify
from jqnt.learn.hull import Hull, check_budget, check_tables, hull_of, with_tolerance

__all__ = ["Allocation", "allocate", "best_allocations", "tie"]

# Beyond so many states (tables whose loss is proportional to their cost, which is subset sum)
# only the most promising go on, and the certificate says so: exact is False, the gap is known.
_STATES = 300_000


@dataclass(frozen=True, eq=False)
class Allocation:
    """An option per group, its loss and its cost (one per constraint), and what is proved."""

    choice: np.ndarray
    loss: float
    cost: tuple[float, ...]
    certificate: Certificate


def allocate(loss: np.ndarray, cost: np.ndarray, budget: float, unit: str = "") -> Allocation:
    """min sum_g loss[g, k_g] subject to sum_g cost[g, k_g] <= budget, exactly.

    Tables are [groups, options], an illegal option is +inf; `unit` only serves the message.
    Raises BudgetError, with the minimum, if no allocation fits; DataError for bad tables.
    """
    return best_allocations(loss, cost, budget, 1, unit)[0]


def best_allocations(
    loss: np.ndarray, cost: np.ndarray, budget: float, count: int, unit: str = ""
) -> list[Allocation]:
    """The `count` best allocations (or all, if there are fewer), best first.

    Pareto dynamic programming over the groups: a state is a prefix's (cost, loss), dropped if
    `count` others dominate it, or if the linear relaxation of the remaining groups shows that
    it cannot reach the `count`-th best completion known (Dyer, Riha & Walker 1995; Pisinger
    1995). Undecided groups come last, so that there is one state for most of the way.
    Exact, and the first one's certificate says so, unless more than 300,000 states stay open.
    """
    loss, cost = np.asarray(loss, np.float64), np.asarray(cost, np.float64)
    legal = check_tables(loss, cost)
    if not np.isfinite(budget) or count < 1:
        raise DataError(f"budget {budget} and count {count}: expected a number, and at least 1")
    check_budget(cost, legal, budget, unit)
    hull = hull_of(loss, cost, legal)
    if count == 1:
        legal = _reduce(loss, cost, budget, legal, hull)
        hull = hull_of(loss, cost, legal)
    choices, exact = _search(loss, cost, budget, count, legal, hull)
    rows = np.arange(len(loss))
    best = certify(loss, cost, budget, choices[0], exact)
    found = []
    for choice in choices:
        own = float(loss[rows, choice].sum())
        proof = replace(best, loss=own, exact=exact and not found)
        found.append(Allocation(choice, own, (float(cost[rows, choice].sum()),), proof))
    return found


def tie(pairs: list[tuple[int, int]], groups: int) -> np.ndarray:
    """Labels 0..n-1, int [groups]: groups that pairs connect carry the same label.

    `np.add.at` or `tied @ table` with `tied = labels == arange(n)[:, None]` sums their rows.
    """
    label = np.arange(groups)
    for a, b in pairs:
        label[label == label[b]] = label[a]
    return np.unique(label, return_inverse=True)[1]


def _reduce(
    loss: np.ndarray, cost: np.ndarray, budget: float, legal: np.ndarray, hull: Hull
) -> np.ndarray:
    """Drops options whose reduced cost alone exceeds the gap of a greedy solution."""
    rows = np.arange(len(loss))
    room = with_tolerance(budget) - cost[rows, hull.start].sum()
    choice, stuck = hull.start.copy(), np.zeros(len(loss), bool)
    ratio = 0.0
    for g, k, dt, r in zip(hull.group, hull.option, hull.cost, hull.ratio, strict=True):
        if dt > room:
            ratio, stuck[g] = max(ratio, r), True
        elif not stuck[g]:
            choice[g], room = k, room - dt
    priced = np.where(legal, loss, np.inf) + ratio * np.where(legal, cost, 0)
    reduced = priced - priced.min(1, keepdims=True)
    bound = priced.min(1).sum() - ratio * with_tolerance(budget)
    upper = loss[rows, choice].sum()
    return legal & (bound + reduced <= upper + _slack(upper, priced[legal]))


def _search(
    loss: np.ndarray, cost: np.ndarray, budget: float, count: int, legal: np.ndarray, hull: Hull
) -> tuple[list[np.ndarray], bool]:
    order = _order(loss, cost, budget, legal, hull)
    position = np.argsort(order)
    slack = _slack(0.0, loss[legal])
    limit, limit_kept = with_tolerance(budget), with_tolerance(budget, 2)
    base_cost = float(cost[order, hull.start[order]].sum())
    base_loss = float(loss[order, hull.start[order]].sum())
    spent, lost, upper, exact = np.zeros(1), np.zeros(1), np.inf, True
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for i, g in enumerate(order):
        options = np.flatnonzero(legal[g])
        spent = (spent[:, None] + cost[g, options]).ravel()
        lost = (lost[:, None] + loss[g, options]).ravel()
        base_cost -= cost[g, hull.start[g]]
        base_loss -= loss[g, hull.start[g]]
        rest = position[hull.group] > i
        step_cost, step_loss = hull.cost[rest], hull.loss[rest]
        edge_cost = np.concatenate(([0.0], np.cumsum(step_cost)))
        edge_loss = np.concatenate(([0.0], np.cumsum(step_loss)))
        slope = np.append(step_loss / step_cost, 0.0)
        room = limit - spent - base_cost
        at = np.searchsorted(edge_cost, np.maximum(room, 0), "right") - 1
        whole = lost + base_loss + edge_loss[at]
        bound = whole + slope[at] * np.maximum(room - edge_cost[at], 0)
        fits = room >= 0
        if fits.sum() >= count:
            upper = min(upper, np.partition(whole[fits], count - 1)[count - 1])
        kept = np.flatnonzero((spent + base_cost <= limit_kept) & (bound <= upper + slack))
        kept = kept[_undominated(spent[kept], lost[kept], count, slack)]
        if len(kept) > _STATES:
            exact = False
            known = fits[kept] & (whole[kept] <= upper + slack)
            rank = np.where(known, -np.inf, bound[kept])
            kept = kept[np.argpartition(rank, _STATES)[:_STATES]]
        spent, lost = spent[kept], lost[kept]
        trail.append((kept // len(options), options[kept % len(options)]))
    states = np.lexsort((spent, lost))[:count]
    return [_trace(trail, order, int(state)) for state in states], exact


def _order(loss, cost, budget, legal, hull: Hull) -> np.ndarray:
    """Groups from the most to the least decided, by the second smallest reduced cost."""
    least = cost[np.arange(len(loss)), hull.start].sum()
    step = int(np.searchsorted(least + np.cumsum(hull.cost), budget, "right"))
    ratio = hull.ratio[step] if step < len(hull.ratio) else 0.0
    priced = np.where(legal, loss, np.inf) + ratio * np.where(legal, cost, 0)
    if loss.shape[1] == 1:
        return np.arange(len(loss))
    two = np.partition(priced, 1, axis=1)[:, :2]
    return np.argsort(-(two[:, 1] - two[:, 0]), kind="stable")


def _undominated(spent: np.ndarray, lost: np.ndarray, count: int, slack: float) -> np.ndarray:
    """Indices of states that fewer than `count` others dominate (and perhaps a few more).

    Losses that differ by rounding only count as equal. The first `count` Pareto fronts are peeled
    off: in a later one a state has `count` dominators.
    """
    left = np.lexsort((lost, spent))
    fronts = []
    for _ in range(count):
        if not len(left):
            break
        values = lost[left]
        earlier = np.concatenate(([np.inf], np.minimum.accumulate(values)[:-1]))
        front = values < earlier - slack
        fronts.append(left[front])
        left = left[~front]
    return np.concatenate(fronts) if fronts else left


def _trace(trail: list, order: np.ndarray, state: int) -> np.ndarray:
    choice = np.empty(len(order), np.int64)
    for (parent, option), g in zip(reversed(trail), order[::-1], strict=True):
        choice[g] = option[state]
        state = parent[state]
    return choice


def _slack(value: float, losses: np.ndarray) -> float:
    """What rounding may move in a sum of these losses."""
    return 1e-12 * (abs(value) + float(np.abs(losses).max()))
