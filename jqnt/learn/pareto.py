"""The front: allocations for many budgets, relaxed in one program and exact from the tables."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from jqnt.errors import ConfigError
from jqnt.learn.allocate import Allocation, allocate
from jqnt.learn.hull import check_tables
from jqnt.learn.milp import allocate_milp
from jqnt.learn.relax import Relaxed, relax

__all__ = ["budgets_between", "front", "joint_budgets", "relaxed_front"]


def budgets_between(loss: np.ndarray, cost: np.ndarray, count: int) -> np.ndarray:
    """`count` budgets, evenly spaced from the cheapest allocation to the cheapest best one.

    Raises ConfigError for fewer than two, DataError for bad tables.
    """
    if count < 2:
        raise ConfigError(f"a front needs at least 2 budgets, not {count}")
    legal = check_tables(loss, cost)
    least = np.where(legal, cost, np.inf).min(1).sum()
    best = np.where(legal, loss, np.inf)
    most = np.where(best == best.min(1, keepdims=True), cost, np.inf).min(1).sum()
    return np.linspace(least, most, count)


def joint_budgets(
    loss: np.ndarray, cost: np.ndarray, room: Sequence[float] | np.ndarray, count: int
) -> np.ndarray:
    """`count` budgets of the first constraint, evenly spaced from the least that any allocation
    within the others' needs to what the best one there costs.

    `cost` is [constraints, groups, options], `room` [constraints]; its first entry does not
    count. Raises ConfigError for fewer than two, BudgetError where the others cannot be met.
    """
    if len(cost) == 1:
        return budgets_between(loss, cost[0], count)
    if count < 2:
        raise ConfigError(f"a front needs at least 2 budgets, not {count}")
    others = np.asarray(room, np.float64)[1:]
    least = allocate_milp(cost[0], cost[1:], others).loss
    best = allocate_milp(loss, cost[1:], others).choice
    most = cost[0][np.arange(len(loss)), best].sum()
    return np.linspace(least, max(most, least), count)


def front(
    loss: np.ndarray, cost: np.ndarray, budgets: Sequence[float] | np.ndarray
) -> list[Allocation]:
    """The exact allocation for each budget, each with its certificate."""
    return [allocate(loss, cost, float(budget)) for budget in budgets]


def relaxed_front(
    loss: Float[ArrayLike, "groups options"],
    cost: Float[ArrayLike, "groups options"],
    budgets: Float[ArrayLike, " budgets"],
    *,
    key: PRNGKeyArray,
) -> Relaxed:
    """`relax` for every budget in one compiled program, which serves any budgets of that number."""
    as32 = partial(jnp.asarray, dtype=jnp.float32)
    return _relaxed_front(as32(loss), as32(cost), as32(budgets), key)


@jax.jit
def _relaxed_front(loss, cost, budgets, key):
    # one key for all: the draws are made once
    return jax.vmap(lambda budget: relax(loss, cost, budget, key=key))(budgets)
