"""The convex hull of every group's options: the linear relaxation of bit allocation, solved."""

import itertools
from typing import NamedTuple

import numpy as np

from jqnt.errors import BudgetError, DataError

__all__ = ["Hull", "check_tables", "hull_of"]


class Hull(NamedTuple):
    """Each group's cheapest option, and the steps up its lower convex hull, best first.

    Step j takes `group[j]` to `option[j]` for `cost[j] > 0` more and `loss[j] < 0` less; the
    ratios -loss/cost fall, so that any prefix of the steps solves the linear relaxation at its
    own cost (Sinha & Zoltners 1979).
    """

    start: np.ndarray
    group: np.ndarray
    option: np.ndarray
    cost: np.ndarray
    loss: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """Loss saved per unit of cost, falling."""
        return -self.loss / self.cost


def check_tables(loss: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The legal options, bool [groups, options]: those whose loss and cost are finite.

    `loss` is [groups, options], `cost` the same or [constraints, groups, options]; an illegal
    option is +inf in either. Raises DataError for other shapes, NaN, -inf, or a group without a
    legal option.
    """
    if loss.ndim != 2 or cost.shape[-2:] != loss.shape or cost.ndim not in (2, 3):
        raise DataError(
            f"tables of shape {loss.shape} (loss) and {cost.shape} (cost); expected "
            "[groups, options] and [groups, options] or [constraints, groups, options]"
        )
    for name, table in (("loss", loss), ("cost", cost)):
        if (bad := np.isnan(table) | np.isneginf(table)).any():
            group = int(np.argwhere(bad)[0][-2])
            raise DataError(f"the {name} table holds NaN or -inf in group {group}")
    legal = np.isfinite(loss) & np.isfinite(cost).reshape(-1, *loss.shape).all(0)
    if not legal.any(1).all():
        raise DataError(f"group {int(np.argmin(legal.any(1)))} has no legal option")
    return legal


def check_budget(cost: np.ndarray, legal: np.ndarray, budget: float, unit: str = "") -> None:
    """Raises BudgetError, with the minimum, if even the cheapest options exceed the budget."""
    minimum = float(np.where(legal, cost, np.inf).min(1).sum())
    if not minimum <= with_tolerance(budget):
        raise BudgetError(
            f"the budget {budget:.6g}{unit} is below the minimum {minimum:.6g}{unit} that the "
            "cheapest legal options need; raise it to at least that"
        )


def with_tolerance(budget: float, times: int = 1) -> float:
    """The budget plus what rounding in sums of thousands of costs may add (1e-12 of it)."""
    return budget + times * 1e-12 * abs(budget)


def hull_of(loss: np.ndarray, cost: np.ndarray, legal: np.ndarray) -> Hull:
    """The lower convex hulls of the points (cost, loss) of each group, merged by ratio."""
    start = np.empty(len(loss), np.int64)
    steps: list[tuple[int, int, float, float]] = []
    order = np.lexsort((loss, np.where(legal, cost, np.inf)), axis=1)
    points = zip(order.tolist(), legal.sum(1).tolist(), loss.tolist(), cost.tolist(), strict=True)
    for g, (row, count, f, t) in enumerate(points):
        kept = [row[0]]
        for k in row[1:count]:
            if f[k] >= f[kept[-1]] or t[k] <= t[kept[-1]]:
                continue
            while len(kept) > 1:
                a, b = kept[-2], kept[-1]
                if (f[b] - f[a]) * (t[k] - t[b]) < (f[k] - f[b]) * (t[b] - t[a]):
                    break
                kept.pop()
            kept.append(k)
        start[g] = kept[0]
        steps += [(g, b, t[b] - t[a], f[b] - f[a]) for a, b in itertools.pairwise(kept)]
    table = np.array(steps, np.float64).reshape(-1, 4)
    ratio = -table[:, 3] / table[:, 2]
    # a stable sort keeps a group's own steps in order where ratios are equal
    table = table[np.argsort(-ratio, kind="stable")]
    return Hull(start, table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], table[:, 3])
