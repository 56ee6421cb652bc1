"""A front with the network in the loop: one search after another, each started at the last."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt.learn.ledger import Ledger, Report
from jqnt.learn.search import Found, search
from jqnt.learn.space import Space

__all__ = ["sweep"]


def sweep(
    space: Space,
    budgets: Sequence[Sequence[float]] | np.ndarray,
    *,
    steps: int = 150,
    progress: Report | None = None,
    key: PRNGKeyArray,
) -> list[Found]:
    """`search` for every budget, in the order given (from the widest to the tightest, say).

    The first takes `steps` steps, each later one an eighth of them from where that one ended, and
    what was run for one budget is not run again for another. A plan found for one budget counts
    for all that it fits. Raises BudgetError before any work if one budget cannot be met.
    """
    for budget in budgets:
        space.prices.check(budget)
    ledger = Ledger(space, space.params, space.theta)
    found: list[Found] = []
    for i, budget in enumerate(budgets):
        found.append(
            search(
                space,
                budget,
                steps=steps if i == 0 else -(-steps // 8),
                start=found[-1].relaxed if found else None,
                ledger=ledger,
                progress=progress,
                key=jax.random.fold_in(key, i),
            )
        )
    return found
