"""How far from the optimum an allocation can be: dual bounds from any multipliers."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from jqnt.learn.hull import check_tables, hull_of

__all__ = ["Certificate", "best_multiplier", "certify", "dual_bound", "spearman"]


@dataclass(frozen=True)
class Certificate:
    """What is proved about an allocation on its tables, and how far the tables can be trusted.

    No allocation within the budgets has a loss below `dual_bound`, which `multiplier` (one per
    constraint, in loss per cost) proves: anyone can evaluate `dual_bound(...)` again. `exact`
    says that `loss` is the optimum itself. `additivity` is Spearman's rank correlation of the
    tables' sum with the true loss over the plans whose true loss was measured, if any was.
    """

    loss: float
    dual_bound: float
    multiplier: tuple[float, ...]
    exact: bool
    additivity: float | None = None

    @property
    def gap(self) -> float:
        """At most so much loss could still be saved: 0 where the optimum is proved."""
        return 0.0 if self.exact else max(self.loss - self.dual_bound, 0.0)


def dual_bound(
    loss: np.ndarray, cost: np.ndarray, budget: np.ndarray, multiplier: np.ndarray
) -> float:
    """D(lambda) = sum_g min_k (f_gk + lambda . t_gk) - lambda . B <= f*, for lambda >= 0.

    `cost` is [constraints, groups, options], `budget` and `multiplier` are [constraints];
    illegal options are +inf. Everett 1963; Fisher 1981.
    """
    priced = np.where(np.isfinite(loss), loss, np.inf)
    for t, m in zip(cost, multiplier, strict=True):
        priced = priced + np.where(np.isfinite(t), m * np.where(np.isfinite(t), t, 0), np.inf)
    return float(priced.min(1).sum() - np.dot(multiplier, budget))


def best_multiplier(loss: np.ndarray, cost: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """The multipliers of the best dual bound: the duals of the linear relaxation.

    One constraint: the ratio of the hull step at which the budget ends. Several: HiGHS.
    """
    legal = check_tables(loss, cost)
    if len(cost) == 1:
        hull = hull_of(loss, cost[0], legal)
        least = cost[0][np.arange(len(loss)), hull.start].sum()
        step = int(np.searchsorted(least + np.cumsum(hull.cost), budget[0], "right"))
        return np.array([hull.ratio[step] if step < len(hull.ratio) else 0.0])
    group, option = np.nonzero(legal)
    one = (np.arange(len(loss))[:, None] == group).astype(np.float64)
    # costs in units of their budgets, so that the solver's tolerances mean the same for each
    unit = np.where(budget == 0, 1.0, np.abs(budget))
    found = linprog(
        loss[group, option],
        A_ub=cost[:, group, option] / unit[:, None],
        b_ub=budget / unit,
        A_eq=one,
        b_eq=np.ones(len(loss)),
        method="highs",
    )
    if found.status != 0:
        return np.zeros(len(cost))
    return np.maximum(-found.ineqlin.marginals, 0) / unit


def certify(
    loss: np.ndarray,
    cost: np.ndarray,
    budget: np.ndarray | float,
    choice: np.ndarray,
    exact: bool = False,
) -> Certificate:
    """The certificate of `choice` (an option per group) with the best dual bound there is.

    `cost` is [groups, options] or [constraints, groups, options], `budget` a number or one per
    constraint.
    """
    loss = np.asarray(loss, np.float64)
    cost = np.asarray(cost, np.float64).reshape(-1, *loss.shape)
    budget = np.asarray(budget, np.float64).reshape(-1)
    multiplier = best_multiplier(loss, cost, budget)
    own = float(loss[np.arange(len(loss)), choice].sum())
    bound = dual_bound(loss, cost, budget, multiplier)
    return Certificate(own, bound, tuple(multiplier.tolist()), exact)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None if either is constant."""
    first, second = (_ranks(np.asarray(v, np.float64)) for v in (a, b))
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(v: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
