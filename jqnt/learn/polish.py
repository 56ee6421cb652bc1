"""Local improvement of an allocation within its budget: repair, greedy fill, 2-swap."""

import numpy as np

from jqnt.learn.hull import with_tolerance

__all__ = ["fill", "neighbours", "repair", "swap"]


def repair(loss: np.ndarray, cost: np.ndarray, budget: float, choice: np.ndarray) -> np.ndarray:
    """Makes `choice` fit: the move that loses least per cost saved, until the budget holds.

    Returns the input if it fits; ends at the cheapest options, within budget or not.
    """
    choice, rows = choice.copy(), np.arange(len(choice))
    while cost[rows, choice].sum() > with_tolerance(budget):
        gain, saved = _moves(loss, cost, choice)
        price = np.where(saved < 0, gain / np.where(saved < 0, -saved, 1), np.inf)
        if not np.isfinite(price).any():
            break
        g, k = np.unravel_index(price.argmin(), price.shape)
        choice[g] = k
    return choice


def fill(loss: np.ndarray, cost: np.ndarray, budget: float, choice: np.ndarray) -> np.ndarray:
    """Spends what is left: the one change that saves most loss and still fits, until none does."""
    choice, rows = choice.copy(), np.arange(len(choice))
    while True:
        room = with_tolerance(budget) - cost[rows, choice].sum()
        gain, spent = _moves(loss, cost, choice)
        gain = np.where(spent <= room, gain, np.inf)
        g, k = np.unravel_index(gain.argmin(), gain.shape)
        if gain[g, k] >= 0:
            return choice
        choice[g] = k


def swap(loss: np.ndarray, cost: np.ndarray, budget: float, choice: np.ndarray) -> np.ndarray:
    """The best change of two groups at once that fits, until none saves any loss."""
    choice = choice.copy()
    while pairs := neighbours(loss, cost, budget, choice, 1):
        before, after = (_total(loss, c) for c in (choice, pairs[0]))
        if after >= before - 1e-12 * abs(before):
            break
        choice = pairs[0]
    return choice


def neighbours(
    loss: np.ndarray,
    cost: np.ndarray,
    budget: float | np.ndarray,
    choice: np.ndarray,
    count: int,
) -> list[np.ndarray]:
    """The `count` best allocations within budget that differ from `choice` in one or two groups.

    `cost` is [groups, options] with one budget, or [constraints, groups, options] with several.
    """
    costs = cost.reshape(-1, *loss.shape)
    limits = np.array([with_tolerance(b) for b in np.ravel(budget)])
    room = limits - costs[:, np.arange(len(choice)), choice].sum(1)
    moves = [_moves(loss, c, choice) for c in costs]
    legal = np.all([np.isfinite(gain) & np.isfinite(spent) for gain, spent in moves], axis=0)
    # the move that changes nothing pairs with every other: single changes are among the pairs
    group, option = (np.append(index, -1) for index in np.nonzero(legal))
    gain = np.append(moves[0][0][legal], 0)
    spent = np.stack([np.append(s[legal], 0) for _, s in moves], axis=1)
    best: list[tuple[float, int, int]] = []
    for i in range(len(group)):
        fits = (spent[i + 1 :] <= room - spent[i]).all(1) & (group[i + 1 :] != group[i])
        others = np.flatnonzero(fits) + i + 1
        total = gain[i] + gain[others]
        if len(others) > count:
            part = np.argpartition(total, count)[:count]
            others, total = others[part], total[part]
        best += zip(total.tolist(), [i] * len(others), others.tolist(), strict=True)
        if len(best) > 4 * count + 64:
            best = sorted(best)[:count]
    found = []
    for _, i, j in sorted(best)[:count]:
        changed = choice.copy()
        for move in (i, j):
            if group[move] >= 0:
                changed[group[move]] = option[move]
        found.append(changed)
    return found


def _moves(loss, cost, choice) -> tuple[np.ndarray, np.ndarray]:
    """What every single change adds to loss and cost, [groups, options]; inf for no change."""
    rows = np.arange(len(choice))
    legal = np.isfinite(loss) & np.isfinite(cost)
    legal[rows, choice] = False
    gain = np.where(legal, loss, np.inf) - loss[rows, choice][:, None]
    spent = np.where(legal, cost, np.inf) - cost[rows, choice][:, None]
    return gain, spent


def _total(loss, choice) -> float:
    return float(loss[np.arange(len(choice)), choice].sum())
