"""Bit allocation under budgets: relaxed by gradient, finished exactly, checked on the true loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jqnt.errors import ConfigError
from jqnt.learn.allocate import best_allocations
from jqnt.learn.certificate import Certificate, certify, spearman
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.fit import fit
from jqnt.learn.milp import allocate_milp
from jqnt.learn.polish import neighbours
from jqnt.learn.sensitivity import choice_losses, choice_table, tensor_losses, tensor_table
from jqnt.learn.source import Draw
from jqnt.learn.space import Space, choice_logits, project
from jqnt.learn.trainable import Trainable
from jqnt.plan import Plan, Theta
from jqnt.types import Params

__all__ = ["Found", "Progress", "search"]

Progress = Callable[[str, int, int], Any]
"""`progress(what, done, total)` on long work."""

_ADAM = optax.adam(0.1)
_BEST, _NEAR, _ROUNDS = 8, 16, 3


@dataclass(frozen=True, eq=False)
class Found:
    """The best allocation found within the budgets, and what is known about it.

    `assignment` maps each choice to its option; `plan`, `theta` and `params` are what holds
    then, without choices. `loss` is the true divergence on the search data, `float_loss` the one
    of the unquantized choices. `cost` has one entry per kind of price, constants included.
    `probability` is the relaxed search's [choices, options]; `table` are the additive losses that
    the certificate speaks of, exact for plans that differ from the last base in one choice.
    """

    assignment: dict[str, int]
    plan: Plan
    theta: Theta
    params: Params
    loss: float
    cost: dict[str, float]
    certificate: Certificate
    probability: np.ndarray
    table: np.ndarray


def search(
    space: Space,
    budget: Sequence[float] | np.ndarray,
    *,
    steps: int = 200,
    start: Theta | None = None,
    trainable: Trainable = choice_logits,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Found:
    """The allocation of least divergence whose costs are within `budget` (one per kind of price).

    1. The choices' logits are trained by `fit` on divergence + augmented Lagrangian of the
       expected costs; the temperature of their softmax falls from 1 to 0.05. `trainable` may
       add weights, scales or rounding logits of the same run; `start` gives logits to start at.
    2. The most probable assignment within the budgets is run, and what exact allocation makes of
       the sensitivities: the best few, and the neighbours of the best by two changes.
    3. Around the best of them, what every single change does is measured; exact allocation on
       that table gives new candidates to run; again from the best, until it stays.

    Raises BudgetError, with the minimum, if no assignment fits.
    """
    room = space.prices.check(budget)
    report = progress or (lambda what, done, total: None)
    if steps < 0:
        raise ConfigError(f"{steps} steps; expected 0 (tables only) or more")
    value = _relaxed(space, room, steps, start, trainable, report, key)
    return _finish(space, room, value, report)


def _relaxed(
    space: Space,
    room: np.ndarray,
    steps: int,
    start: Theta | None,
    trainable: Trainable,
    report: Progress,
    key: PRNGKeyArray,
) -> dict[str, Any]:
    """The trained value of `space.loss`."""
    ends = np.stack([_extreme(space, 0), _extreme(space, -1)])
    worst, best = _true(space, space.params, space.theta, ends)
    value = space.value(room, max(worst - best, 1e-6), max(steps, 1))
    if start is not None:
        value["theta"] = {
            name: group.replace(logit=start[name].logit) if name in space.plan.choices else group
            for name, group in value["theta"].items()
        }
    if not steps:
        return value
    fitted = fit(
        space.loss,
        value,
        _ADAM,
        Draw(space.samples, space.batch_size),
        steps=steps,
        trainable=trainable,
        project=project,
        chunk=25,
        progress=lambda done, total, _: report("relaxed search", done, total),
        key=key,
    )
    return fitted.theta


def _finish(space: Space, room: np.ndarray, value: dict[str, Any], report: Progress) -> Found:
    """Exact allocation on tables at the learned weights, and the best by the true loss."""
    params, theta = value["params"], value["theta"]
    probability = _probability(space, theta)
    table = space.prices.table
    legal = np.isfinite(table).all(0)
    unlikely = np.where(legal, -np.log(np.maximum(probability, 1e-30)), np.inf)
    start = _allocations(unlikely, table, room, 1)[0]
    alone = tensor_losses(
        space.trial, params, theta, space.batches, lambda d, t: report("sensitivities", d, t)
    )
    known: dict[tuple[int, ...], float] = {}
    from_float = _candidates(tensor_table(space.trial, alone), table, room)
    _evaluate(space, params, theta, [start, *from_float], known)
    around = np.empty(0)
    for _ in range(_ROUNDS):
        best = np.array(min(known, key=known.__getitem__))
        losses = choice_losses(
            space.trial, params, theta, best, space.batches, lambda d, t: report("around", d, t)
        )
        around = choice_table(losses, best)
        for row, k in zip(*np.nonzero(np.isfinite(losses)), strict=True):
            changed = best.copy()
            changed[row] = k
            if _fits(space, changed, room):
                known.setdefault(tuple(changed.tolist()), float(losses[row, k]))
        _evaluate(space, params, theta, _candidates(around, table, room), known)
        if known[tuple(best.tolist())] <= min(known.values()):
            break
    return _found(space, room, value, probability, around, known)


def _found(space, room, value, probability, table, known) -> Found:
    """The best that is known, certified on the last table."""
    best = min(known, key=known.__getitem__)
    tried, losses = np.array(list(known)), np.array(list(known.values()))
    rows = np.arange(len(best))
    optimum = _allocations(table, space.prices.table, room, 1)[0]
    own = table[rows, list(best)].sum()
    exact = bool(own <= table[rows, optimum].sum() + 1e-12 * abs(own))
    proof = certify(table, space.prices.table, room, np.array(best), exact)
    additivity = spearman(table[rows, tried].sum(1), losses)
    assignment = dict(zip(space.plan.choices, best, strict=True))
    cost = space.prices.cost(best)
    return Found(
        assignment=assignment,
        plan=decide_plan(space.plan, assignment),
        theta=decide_theta(value["theta"], space.plan, assignment),
        params=value["params"],
        loss=known[best],
        cost=dict(zip(space.prices.kinds, cost.tolist(), strict=True)),
        certificate=replace(proof, additivity=additivity),
        probability=probability,
        table=table,
    )


def _allocations(loss, cost, room, count) -> list[np.ndarray]:
    """The best `count` by the tables, or with several budgets the best one."""
    if len(cost) == 1:
        return [a.choice for a in best_allocations(loss, cost[0], float(room[0]), count)]
    return [allocate_milp(loss, cost, room).choice]


def _candidates(loss, cost, room) -> list[np.ndarray]:
    best = _allocations(loss, cost, room, _BEST)
    return [*best, *neighbours(loss, cost, room, best[0], _NEAR)]


def _evaluate(space: Space, params, theta, candidates, known: dict[tuple[int, ...], float]) -> None:
    """Adds the true losses of what is not known yet."""
    new = list(dict.fromkeys(tuple(np.asarray(c).tolist()) for c in candidates))
    new = [c for c in new if c not in known]
    if new:
        known.update(zip(new, _true(space, params, theta, np.array(new)).tolist(), strict=True))


def _true(space: Space, params, theta, assignments: np.ndarray) -> np.ndarray:
    rows = np.stack([space.trial.branches(a) for a in assignments])
    return space.trial.losses(params, theta, rows, rows[0], space.batches)


def _fits(space: Space, assignment: np.ndarray, room: np.ndarray) -> bool:
    cost = space.prices.cost(assignment) - space.prices.constant
    return bool((cost <= room * (1 + 1e-12)).all())


def _extreme(space: Space, which: int) -> np.ndarray:
    """The cheapest (0) or the dearest (-1) legal options, by the first kind of price."""
    table = np.where(np.isfinite(space.prices.table).all(0), space.prices.table[0], np.nan)
    return np.nanargmin(table, 1) if which == 0 else np.nanargmax(table, 1)


def _probability(space: Space, theta: Theta) -> np.ndarray:
    """softmax(logit / 0.05) by choice, 0 where there is no option."""
    found = np.zeros(space.prices.table.shape[1:])
    for row, name in enumerate(space.plan.choices):
        logit = np.asarray(theta[name].logit, np.float64) / 0.05
        p = np.exp(logit - logit.max())
        found[row, : len(p)] = p / p.sum()
    return found
