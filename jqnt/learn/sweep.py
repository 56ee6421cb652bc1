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
    ledger: Ledger | None = None,
    before: Sequence[Found] = (),
    progress: Report | None = None,
    key: PRNGKeyArray,
) -> list[Found]:
    """`search` for every budget, in the order given (from the widest to the tightest, say).

    The first takes `steps` steps, each later one an eighth of them from where that one ended, and
    what was run for one budget is not run again for another. A plan found for one budget counts
    for all that it fits; `ledger` may hold what was run before, and `before` the results of an
    earlier call with the first of the budgets, after which this one goes on. Raises BudgetError
    before any work if one budget cannot be met.
    """
    for budget in budgets:
        space.prices.check(budget)
    book = ledger or Ledger(space, space.params, space.theta)
    found = list(before)
    for i, budget in enumerate(budgets):
        if i < len(before):
            continue
        found.append(
            search(
                space,
                budget,
                steps=steps if i == 0 else -(-steps // 8),
                start=found[-1].relaxed if found else None,
                ledger=book,
                progress=progress,
                key=jax.random.fold_in(key, i),
            )
        )
    # what was found for a later budget may fit an earlier one, and be better
    for i, budget in enumerate(budgets):
        fits = [f for f in found if _fits(f, space, budget)]
        if min(f.loss for f in fits) < found[i].loss:
            found[i] = search(space, budget, steps=0, ledger=book, progress=progress, key=key)
    return found


def _fits(found: Found, space: Space, budget: Sequence[float] | np.ndarray) -> bool:
    spent = np.array([found.cost[kind] for kind in space.prices.kinds])
    return bool((spent <= np.asarray(budget) * (1 + 1e-12)).all())
