"""A histogram whose bins are powers of two wide, so that it grows without losing mass."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.types import Leaf

__all__ = ["BINS", "Histogram", "add", "centres", "empty", "merge", "points"]

BINS = 8192
"""Half of them for each sign; data of one sign uses 2048 to 4096 of them."""

_FIRST_EXPONENT = -100


@struct.dataclass
class Histogram:
    """Bin i holds the mass of [(i - BINS/2) * 2^exponent, (i + 1 - BINS/2) * 2^exponent).

    `zeros` is the mass at exactly zero, which is in its bin too (after a Relu it is most of the
    mass, and it costs no error). `low` and `high` are the exact range.
    """

    counts: Leaf
    exponent: Leaf
    zeros: Leaf
    low: Leaf
    high: Leaf


def empty() -> Histogram:
    """Nothing seen."""
    return Histogram(
        counts=jnp.zeros(BINS, jnp.float32),
        exponent=jnp.int32(_FIRST_EXPONENT),
        zeros=jnp.float32(0),
        low=jnp.float32(jnp.inf),
        high=jnp.float32(-jnp.inf),
    )


def add(
    histogram: Histogram, x: Float[Array, "..."], weight: Float[Array, ""] | float = 1.0
) -> Histogram:
    """With the values of `x`, each of mass `weight`.

    Where |x| outgrows the bins, they become 2^k times as wide and 2^k of them one: bins nest, so
    no mass is split or lost. A batch is counted in int32, since float32 stops counting at 2^24.
    """
    low, high = jnp.min(x), jnp.max(x)
    _, needed = jnp.frexp(jnp.maximum(-low, high))
    exponent = jnp.maximum(histogram.exponent, needed - (BINS.bit_length() - 2))
    index = jnp.floor(x.reshape(-1) * jnp.ldexp(jnp.float32(1), -exponent)).astype(jnp.int32)
    index = jnp.clip(index + BINS // 2, 0, BINS - 1)
    counts = jnp.zeros(BINS, jnp.int32).at[index].add(1, mode="promise_in_bounds")
    return Histogram(
        counts=_widened(histogram, exponent) + weight * counts.astype(jnp.float32),
        exponent=exponent,
        zeros=histogram.zeros + weight * jnp.sum(x == 0, dtype=jnp.int32).astype(jnp.float32),
        low=jnp.minimum(histogram.low, low),
        high=jnp.maximum(histogram.high, high),
    )


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of all that either has seen."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    return Histogram(
        counts=_widened(a, exponent) + _widened(b, exponent),
        exponent=exponent,
        zeros=a.zeros + b.zeros,
        low=jnp.minimum(a.low, b.low),
        high=jnp.maximum(a.high, b.high),
    )


def centres(histogram: Histogram) -> Float[Array, " n"]:
    """The value that stands for each bin, ascending: its middle, inside what was seen."""
    width = jnp.ldexp(jnp.float32(1), histogram.exponent)
    middles = (jnp.arange(BINS) - BINS // 2 + 0.5) * width
    return jnp.clip(middles, histogram.low, histogram.high)


def points(histogram: Histogram) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """(value, mass) of every bin without its zeros, and of zero itself, which comes last."""
    counts = histogram.counts.at[BINS // 2].add(-histogram.zeros)
    return jnp.append(centres(histogram), 0.0), jnp.append(counts, histogram.zeros)


def _widened(histogram: Histogram, exponent: Array) -> Float[Array, " bins"]:
    """The counts in bins of 2^exponent, which are no narrower."""
    shift = jnp.minimum(exponent - histogram.exponent, 31)
    index = jnp.right_shift(jnp.arange(BINS) - BINS // 2, shift) + BINS // 2
    return jnp.zeros(BINS, jnp.float32).at[index].add(histogram.counts)
