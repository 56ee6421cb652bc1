"""Relaxed allocation on tables: softmax logits under an augmented Lagrangian, any budget traced."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

__all__ = ["Relaxed", "augmented", "raise_multiplier", "relax"]


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


def augmented(excess: Float[Array, "..."], multiplier: Float[Array, "..."], penalty: float):
    """(max(0, lambda + rho g)^2 - lambda^2) / (2 rho), the price of g = cost / budget - 1 <= 0.

    Hestenes 1969, Powell 1969, for inequalities Rockafellar 1973; summed over constraints.
    """
    pushed = jnp.maximum(0, multiplier + penalty * excess)
    return ((pushed**2 - multiplier**2) / (2 * penalty)).sum()


def raise_multiplier(
    excess: Float[Array, "..."], multiplier: Float[Array, "..."], rate: float
) -> Float[Array, "..."]:
    """lambda <- max(0, lambda + rate * g)."""
    return jnp.maximum(0, multiplier + rate * jax.lax.stop_gradient(excess))


def relax(
    loss: Float[ArrayLike, "groups options"],
    cost: Float[ArrayLike, "groups options"],
    budget: ArrayLike,
    *,
    steps: int = 600,
    learning_rate: float = 0.05,
    penalty: float = 20.0,
    samples: int = 16,
    key: PRNGKeyArray,
) -> Relaxed:
    """min E_p[loss] subject to E_p[cost] <= budget, p = softmax(logit / temperature) per group.

    Adam on the logits, the temperature falls geometrically from 1 to 0.05. The constraint is
    g = (E_p[cost] - budget) / (dearest - cheapest) <= 0 under an augmented Lagrangian; the loss
    is in units of (worst - best). At every step the argmax and `samples` - 1 Gumbel draws from p
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

    def lagrangian(logit, multiplier, step):
        p = probability(logit, step)
        excess = ((p * cost).sum() - budget) / range_
        return (p * loss).sum() / unit + augmented(excess, multiplier, penalty), excess

    def descend(carry, inputs):
        step, key = inputs
        logit, state, multiplier, best, best_loss = carry
        grad, excess = jax.grad(lagrangian, has_aux=True)(logit, multiplier, step)
        updates, state = optimizer.update(grad, state)
        logit = logit + updates
        multiplier = raise_multiplier(excess, multiplier, 0.1 * penalty)
        noise = jax.random.gumbel(key, (samples, *logit.shape)).at[0].set(0)
        drawn = jnp.log(probability(logit, step))[None] + noise
        vertex = drawn.argmax(2)
        own = loss[rows[None], vertex].sum(1)
        own = jnp.where(cost[rows[None], vertex].sum(1) <= budget, own, jnp.inf)
        at = own.argmin()
        best = jnp.where(own[at] < best_loss, vertex[at], best)
        return (logit, state, multiplier, best, jnp.minimum(own[at], best_loss)), None

    logit = jnp.zeros_like(loss)
    first = jnp.where(legal, cost, jnp.inf).argmin(1)
    start = (logit, optimizer.init(logit), jnp.zeros(()), first, loss[rows, first].sum())
    (logit, _, multiplier, choice, total), _ = jax.lax.scan(
        descend, start, (jnp.arange(steps), jax.random.split(key, steps))
    )
    return Relaxed(logit, multiplier, choice, total, cost[rows, choice].sum())


def _spread(table, legal):
    """The sum over groups of largest less smallest, kept above zero."""
    most, least = (
        jnp.where(legal, table, -jnp.inf).max(1),
        jnp.where(legal, table, jnp.inf).min(1),
    )
    return jnp.maximum((most - least).sum(), jnp.finfo(jnp.float32).tiny)
