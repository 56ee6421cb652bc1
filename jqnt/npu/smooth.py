"""Steps and kinks of hardware in two calculi: exact with smooth slopes, and relaxed throughout."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["EXACT", "RELAXED", "Calculus", "largest", "p_norm", "round_up", "smallest"]

POWER = 16.0
"""Exponent of the smooth maximum: it overestimates two equal times by 2^(1/16) - 1 = 4.4 %."""


class Calculus(NamedTuple):
    """The operations in which the cost of an operator has a step or a kink.

    `round_up(x, granule)`, `largest(*terms)` and `smallest(*terms)`.
    """

    round_up: Callable[..., Array]
    largest: Callable[..., Array]
    smallest: Callable[..., Array]


@jax.custom_jvp
def round_up(x: Float[Array, "..."], granule: Float[Array, "..."]) -> Float[Array, "..."]:
    """ceil(x / granule) * granule; the slope in x is 1, in the granule the number of granules."""
    return blocks(x, granule) * granule


@round_up.defjvp
def _round_up_jvp(primals, tangents):
    (x, granule), (dx, dgranule) = primals, tangents
    count = blocks(x, granule)
    return count * granule, dx + (count - x / granule) * dgranule


def largest(*terms: Float[Array, "..."]) -> Float[Array, "..."]:
    """The maximum of non-negative terms; its slopes are those of `p_norm`."""
    return _largest(jnp.stack(jnp.broadcast_arrays(*terms)))


def smallest(*terms: Float[Array, "..."]) -> Float[Array, "..."]:
    """The minimum of positive terms; its slopes are those of the p-norm of exponent -16."""
    return _smallest(jnp.stack(jnp.broadcast_arrays(*terms)))


def p_norm(x: Float[Array, "k ..."], power: float = POWER) -> Float[Array, "..."]:
    """(sum_k x_k^p)^(1/p) over the first axis: at least the maximum, at most k^(1/p) times it.

    Scale-free, unlike a log-sum-exp of times in seconds. A negative p bounds the minimum from
    below. Zero terms count as the smallest normal number.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    log = jnp.log(jnp.maximum(x, tiny))
    return jnp.exp(jax.nn.logsumexp(power * log, axis=0) / power)


@jax.custom_jvp
def _largest(x: Float[Array, "k ..."]) -> Float[Array, "..."]:
    return jnp.max(x, axis=0)


@_largest.defjvp
def _largest_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.max(x, axis=0), jax.jvp(p_norm, (x,), (dx,))[1]


@jax.custom_jvp
def _smallest(x: Float[Array, "k ..."]) -> Float[Array, "..."]:
    return jnp.min(x, axis=0)


@_smallest.defjvp
def _smallest_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.min(x, axis=0), jax.jvp(partial(p_norm, power=-POWER), (x,), (dx,))[1]


def blocks(x: Float[Array, "..."], granule: Float[Array, "..."]) -> Float[Array, "..."]:
    """ceil(x / granule), safe against a quotient that rounds to just above an integer.

    XLA may multiply by the granule's reciprocal (96 / 3 becomes 32.000004); a millionth is less
    than one part of any tensor dimension.
    """
    return jnp.ceil(x / granule * (1 - 1e-6))


def _interpolated(x: Float[Array, "..."], granule: Float[Array, "..."]) -> Float[Array, "..."]:
    """Linear between the exact values at the integers beside x, so equal to them there."""
    low = jnp.floor(x)
    share = x - low
    exact = blocks(low, granule) * (1 - share) + blocks(low + 1, granule) * share
    return exact * granule


EXACT = Calculus(round_up, largest, smallest)
"""The hardware's values, with slopes that a search can use."""

RELAXED = Calculus(
    _interpolated,
    lambda *terms: jnp.max(jnp.stack(jnp.broadcast_arrays(*terms)), axis=0),
    lambda *terms: jnp.min(jnp.stack(jnp.broadcast_arrays(*terms)), axis=0),
)
"""Continuous in everything, equal to `EXACT` at every integer dimension; slopes are its own."""
