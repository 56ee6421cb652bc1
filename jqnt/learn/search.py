"""Bit allocation under budgets: relaxed by gradient, finished exactly, checked on the true loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jqnt.errors import ConfigError
from jqnt.learn.allocate import best_allocations
from jqnt.learn.certificate import Certificate, certify, spearman
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.fit import fit
from jqnt.learn.ledger import Ledger, Report
from jqnt.learn.milp import allocate_milp
from jqnt.learn.polish import neighbours
from jqnt.learn.prices import Prices
from jqnt.learn.relaxation import first_bits, widths_of, with_bits
from jqnt.learn.source import Draw
from jqnt.learn.space import Space, choice_logits
from jqnt.learn.together import hardened, rates
from jqnt.learn.trainable import Trainable
from jqnt.plan import Plan, Theta
from jqnt.types import Params

__all__ = ["Found", "Report", "search"]

_ADAM = optax.adam(0.1)
_BEST, _NEAR, _ROUNDS = 8, 16, 3


@dataclass(frozen=True, eq=False)
class Found:
    """The best allocation found within the budgets, and what is known about it.

    `assignment` maps each choice to its option; `plan`, `theta` and `params` are what holds
    then, without choices. `loss` is the true divergence on the search data. `cost` has one entry
    per kind of price, constants included. `relaxed` is where the relaxed search ended, the
    logits of each choice or its bit widths; `table` [choices, options] are the additive losses
    that the certificate speaks of, exact for plans that differ from the last base in one choice.
    """

    assignment: dict[str, int]
    plan: Plan
    theta: Theta
    params: Params
    loss: float
    cost: dict[str, float]
    certificate: Certificate
    relaxed: dict[str, np.ndarray]
    table: np.ndarray


def search(
    space: Space,
    budget: Sequence[float] | np.ndarray,
    *,
    steps: int = 150,
    start: Mapping[str, Any] | None = None,
    trainable: Trainable = choice_logits,
    ledger: Ledger | None = None,
    progress: Report | None = None,
    key: PRNGKeyArray,
) -> Found:
    """The allocation of least divergence whose costs are within `budget` (one per kind of price).

    1. The choices' logits are trained by `fit` on divergence + augmented Lagrangian of the
       expected costs; the temperature of their softmax falls from 1 to 0.05. `trainable` may
       add weights, scales or rounding logits of the same run (see `joint`); `start` is the
       `relaxed` of an earlier result to start at.
    2. The most probable assignment within the budgets is run, and what exact allocation makes of
       the sensitivities: the best few, and the neighbours of the best by two changes.
    3. Around the best of them, what every single change does is measured; exact allocation on
       that table gives new candidates to run; again from the best, until it stays.

    With 0 steps and no start nothing is trained and no gradient compiled: tables, exact finish and
    the true loss alone, which is the fastest.
    `ledger` keeps what was run for another budget (only where nothing but logits trains).
    Raises BudgetError, with the minimum, if no assignment fits.
    """
    room = space.prices.check(budget)
    report = progress or (lambda what, done, total: None)
    if steps < 0:
        raise ConfigError(f"{steps} steps; expected 0 (tables only) or more")
    if ledger is not None and trainable is not choice_logits:
        raise ConfigError("a ledger holds the losses of fixed parameters; train logits only")
    value = _relaxed(space, room, steps, start, trainable, report, key)
    book = ledger or Ledger(space, value["params"], value["theta"])
    return _finish(book, room, value, report)


def _relaxed(
    space: Space,
    room: np.ndarray,
    steps: int,
    start: Mapping[str, Any] | None,
    trainable: Trainable,
    report: Report,
    key: PRNGKeyArray,
) -> dict[str, Any]:
    """The trained value of `space.loss`."""
    if not steps and start is None:
        bits = first_bits(space.relaxation, space.plan)
        return {"params": dict(space.params), "theta": dict(space.theta), "bits": bits}
    value = space.value(room, max(steps, 1))
    if start is not None and value["bits"]:
        value["bits"] = {name: jnp.asarray(start[name]) for name in value["bits"]}
    elif start is not None:
        value["theta"] = {
            name: group.replace(logit=jnp.asarray(start[name])) if name in start else group
            for name, group in value["theta"].items()
        }
    if not steps:
        return value
    fitted = fit(
        space.loss,
        value,
        _ADAM if trainable is choice_logits else rates(steps),
        Draw(space.samples, space.batch_size),
        steps=steps,
        trainable=trainable,
        project=space.project,
        chunk=25,
        progress=lambda done, total, _: report("relaxed search", done, total),
        key=key,
    )
    return {**fitted.theta, "theta": hardened(fitted.theta["theta"])}


def _finish(book: Ledger, room: np.ndarray, value: dict[str, Any], report: Report) -> Found:
    """Exact allocation on tables at the learned weights, and the best by the true loss."""
    space, priced = book.space, book.space.prices
    unlikely = np.where(space.legal, -np.log(_probability(space, value)), np.inf)
    first = _allocations(unlikely, priced, room, 1)[0]
    book.run([first, *_candidates(book.sensitivities(report), priced, room)], report)
    best, around = _best(book, room), np.empty(0)
    for _ in range(_ROUNDS):
        around = book.around(best, report)
        book.run(_candidates(around, priced, room), report)
        before, best = best, _best(book, room)
        if (best == before).all():
            break
    assignment = dict(zip(space.plan.choices, best.tolist(), strict=True))
    return Found(
        assignment=assignment,
        plan=decide_plan(space.plan, assignment),
        theta=decide_theta(value["theta"], space.plan, assignment),
        params=value["params"],
        loss=book.known[tuple(best.tolist())],
        cost=dict(zip(space.prices.kinds, space.prices.cost(best).tolist(), strict=True)),
        certificate=_certificate(book, room, around, best),
        relaxed=_relaxed_state(space, value),
        table=around,
    )


def _best(book: Ledger, room: np.ndarray) -> np.ndarray:
    """The best assignment within the budgets that is known."""
    tried = np.array(list(book.known))
    fits = _fits(book.space.prices, room, tried)
    return tried[np.where(fits, list(book.known.values()), np.inf).argmin()]


def _fits(priced: Prices, room: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Which of the assignments, int [plans, choices], are within the budgets: bool [plans]."""
    spent = priced.costs(tried) - priced.constant[:, None]
    return np.all(spent <= room[:, None] + 1e-12 * np.abs(room[:, None]), axis=0)


def _certificate(
    book: Ledger, room: np.ndarray, table: np.ndarray, best: np.ndarray
) -> Certificate:
    tried, losses = np.array(list(book.known)), np.array(list(book.known.values()))
    rows, priced = np.arange(len(best)), book.space.prices
    optimum = _allocations(table, priced, room, 1)[0]
    own = table[rows, best].sum()
    exact = bool(own <= table[rows, optimum].sum() + 1e-12 * abs(own))
    additivity = spearman(table[rows, tried].sum(1), losses)
    # couplings can only add to their least entries, so the bound without them holds
    least = np.zeros(len(room))
    for c in priced.couplings:
        least[c.constraint] += c.cost.min()
    proof = certify(table, priced.table, room - least, best, exact)
    return replace(proof, additivity=additivity)


def _allocations(
    loss: np.ndarray, priced: Prices, room: np.ndarray, count: int
) -> list[np.ndarray]:
    """The best `count` by the tables, or with several budgets or couplings the best one."""
    if len(priced.table) == 1 and not priced.couplings:
        found = best_allocations(loss, priced.table[0], float(room[0]), count)
        return [allocation.choice for allocation in found]
    return [allocate_milp(loss, priced.table, room, priced.couplings).choice]


def _candidates(loss: np.ndarray, priced: Prices, room: np.ndarray) -> list[np.ndarray]:
    best = _allocations(loss, priced, room, _BEST)
    near = neighbours(loss, priced.table, room, best[0], _NEAR)
    fits = _fits(priced, room, np.array([*best, *near]))
    return [choice for choice, ok in zip([*best, *near], fits, strict=True) if ok]


def _relaxed_state(space: Space, value: dict[str, Any]) -> dict[str, np.ndarray]:
    if value["bits"]:
        return {name: np.asarray(bits) for name, bits in value["bits"].items()}
    return {name: np.asarray(value["theta"][name].logit) for name in space.plan.choices}


def _probability(space: Space, value: dict[str, Any]) -> np.ndarray:
    """Of each option, at the end of training: float64 [choices, options], at least 1e-30."""
    theta, temperature = value["theta"], 0.05
    if value["bits"]:
        widths = widths_of(space.relaxation, space.plan, value["bits"])
        theta, temperature = with_bits(theta, space.plan, widths, space.legal), 1.0
    found = np.zeros(space.legal.shape)
    for row, name in enumerate(space.plan.choices):
        logit = np.asarray(theta[name].logit, np.float64) / temperature
        p = np.exp(logit - logit.max())
        found[row, : len(p)] = p / p.sum()
    return np.maximum(found, 1e-30)
