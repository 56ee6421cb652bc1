"""Relaxed allocation on tables: softmax logits under an augmented Lagrangian, any budget traced."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from jqnt.learn.controller import LAGRANGIAN, Controller

__all__ = ["Relaxed", "relax"]


class Relaxed(NamedTuple):
    """What relaxed search found; with a leading axis of budgets under `vmap`.

    `logit` [groups, options] and `multiplier` () are those of the end. `choice`, int [groups], is
    the best feasible vertex among those drawn on the way (the cheapest options are the first);
    `loss` and `cost` () are its sums over the tables.
    """

    logit: Any
    multiplier: Any
    choice: Any
    loss: Any
    cost: Any


def relax(
    loss: Float[ArrayLike, "groups options"],
    cost: Float[ArrayLike, "groups options"],
    budget: ArrayLike,
    *,
    steps: int = 600,
    learning_rate: float = 0.05,
    controller: Controller = LAGRANGIAN,
    samples: int = 16,
    key: PRNGKeyArray,
) -> Relaxed:
    """min E_p[loss] subject to E_p[cost] <= budget, p = softmax(logit / temperature) per group.

    Adam on the logits, the temperature falls geometrically from 1 to 0.05. The constraint is
    g = (E_p[cost] - budget) / (dearest - cheapest) <= 0, priced by `controller`; the loss is in
    units of (worst - best). At every step the argmax and `samples` - 1 Gumbel draws from p
    are tried. Illegal options are +inf. Tables and budget are traced: one program serves every
    budget, and `vmap` a whole front (with the same draws if the key is not mapped).
    """
    loss, cost = jnp.asarray(loss), jnp.asarray(cost)
    legal = jnp.isfinite(loss) & jnp.isfinite(cost)
    loss, cost = jnp.where(legal, loss, 0), jnp.where(legal, cost, 0)
    unit, range_ = _spread(loss, legal), _spread(cost, legal)
    optimizer = optax.adam(learning_rate)
    rows = jnp.arange(loss.shape[0])

    def probability(logit, step):
        temperature = 0.05 ** (step / steps)
        return jax.nn.softmax(jnp.where(legal, logit / temperature, -jnp.inf), axis=1)

    def lagrangian(logit, priced, step):
        p = probability(logit, step)
        excess = ((p * cost).sum() - budget) / range_
        price = controller.price(excess[None], priced)
        return (p * loss).sum() / unit + price, excess

    def descend(carry, inputs):
        step, key = inputs
        logit, state, priced, best, best_loss = carry
        grad, excess = jax.grad(lagrangian, has_aux=True)(logit, priced, step)
        updates, state = optimizer.update(grad, state)
        logit = logit + updates
        priced = controller.update(excess[None], priced)
        noise = jax.random.gumbel(key, (samples, *logit.shape)).at[0].set(0)
        drawn = jnp.log(probability(logit, step))[None] + noise
        vertex = drawn.argmax(2)
        own = loss[rows[None], vertex].sum(1)
        own = jnp.where(cost[rows[None], vertex].sum(1) <= budget, own, jnp.inf)
        at = own.argmin()
        best = jnp.where(own[at] < best_loss, vertex[at], best)
        return (logit, state, priced, best, jnp.minimum(own[at], best_loss)), None

    logit = jnp.zeros_like(loss)
    first = jnp.where(legal, cost, jnp.inf).argmin(1)
    start = (logit, optimizer.init(logit), controller.init(1), first, loss[rows, first].sum())
    (logit, _, priced, choice, total), _ = jax.lax.scan(
        descend, start, (jnp.arange(steps), jax.random.split(key, steps))
    )
    return Relaxed(logit, priced["multiplier"][0], choice, total, cost[rows, choice].sum())


def _spread(table, legal):
    """The sum over groups of largest less smallest, kept above zero."""
    most, least = (
        jnp.where(legal, table, -jnp.inf).max(1),
        jnp.where(legal, table, jnp.inf).min(1),
    )
    return jnp.maximum((most - least).sum(), jnp.finfo(jnp.float32).tiny)
