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
from jqnt.learn.relax import Relaxed, relax

__all__ = ["budgets_between", "front", "relaxed_front"]


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
