"""Searches for the range to quantize: what is clipped against how finely the rest is divided."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jqnt.affine import scale_of_range
from jqnt.formats import Integer
from jqnt.quantizers import Affine

__all__ = ["grid_of_range", "least_divergent_range", "least_error_range"]


def grid_of_range(
    low: Float[Array, "..."], high: Float[Array, "..."], fmt: Integer, symmetric: bool
) -> Affine:
    """The grid that covers [low, high] and zero, one scale per element."""
    bits = jnp.float32(fmt.bits)
    scale, zero = scale_of_range(low, high, bits, fmt.signed, symmetric, fmt.strict)
    return Affine(scale, zero, bits, fmt.signed, fmt.strict)


def least_error_range(
    values: Float[Array, "*groups n"],
    mass: Float[Array, "*groups n"],
    fmt: Integer,
    symmetric: bool,
    power: float = 2.0,
    clip_weight: float = 1.0,
    width: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, "*groups"], Float[Array, "*groups"]]:
    """The (low, high) per group that minimizes sum_i mass_i * c_i * |values_i - q(values_i)|^power.

    c_i is `clip_weight` outside [low, high] and 1 inside. Both ends shrink together from the
    range of the values that have mass, then, for an asymmetric grid, each alone: 64 factors
    2^(-k/8), then 17 finer ones around the best. `width` is that of histogram bins: on a grid
    that is finer than two of them the error inside is that of evenly spread values,
    (scale / 2)^power / (power + 1).
    """
    seen = mass > 0
    low = jnp.minimum(jnp.min(jnp.where(seen, values, 0), axis=-1), 0)
    high = jnp.maximum(jnp.max(jnp.where(seen, values, 0), axis=-1), 0)

    def error(low, high):
        grid = grid_of_range(low[..., None], high[..., None], fmt, symmetric)
        distance = jnp.abs(values - grid(values)) ** power
        spread = (grid.scale / 2) ** power / (power + 1)
        inside = (values >= low[..., None]) & (values <= high[..., None])
        fine = jnp.where(grid.scale < 2 * width, spread, distance)
        return jnp.sum(mass * jnp.where(inside, fine, clip_weight * distance), axis=-1)

    def shrink(low, high, move_low, move_high):
        def at(factor):
            moved_low = low * factor if move_low else low
            moved_high = high * factor if move_high else high
            return moved_low, moved_high, error(moved_low, moved_high)

        best_low, best_high = low, high
        centre = jnp.ones_like(low)
        for steps in (jnp.arange(64) / 8, jnp.linspace(-1, 1, 17) / 8):
            factors = centre[None] * 2 ** -steps.reshape((-1,) + (1,) * low.ndim)
            lows, highs, errors = lax.map(at, jnp.minimum(factors, 1))
            best = jnp.argmin(errors, axis=0, keepdims=True)
            best_low = jnp.take_along_axis(lows, best, 0)[0]
            best_high = jnp.take_along_axis(highs, best, 0)[0]
            centre = jnp.take_along_axis(jnp.minimum(factors, 1), best, 0)[0]
        return best_low, best_high

    low, high = shrink(low, high, True, True)
    if not symmetric:
        low, high = shrink(low, high, False, True)
        low, high = shrink(low, high, True, False)
    return low, high


def least_divergent_range(
    values: Float[Array, " n"], mass: Float[Array, " n"], fmt: Integer, symmetric: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The (low, high) whose quantized distribution is closest in Kullback-Leibler divergence.

    D(P || Q) = sum P log(P / Q), where P is the histogram with what is clipped added to its
    ends, and Q the clipped histogram with the mass of each code spread evenly over the bins
    with mass that fall on the code. 64 factors 2^(-k/8) on the whole range. Source: Migacz 2017
    (8-bit inference with TensorRT), for any grid.
    """
    seen = mass > 0
    low = jnp.minimum(jnp.min(jnp.where(seen, values, 0)), 0)
    high = jnp.maximum(jnp.max(jnp.where(seen, values, 0)), 0)
    # 16 bits have more codes than the histogram bins; more would only cost memory.
    codes = 2 ** min(fmt.bits, 16)

    def divergence(factor):
        grid = grid_of_range(low * factor, high * factor, fmt, symmetric)
        inside = (values >= low * factor) & (values <= high * factor)
        smallest = jnp.min(jnp.where(inside, values, jnp.inf))
        largest = jnp.max(jnp.where(inside, values, -jnp.inf))
        kept = jnp.where(inside, mass, 0)
        below = jnp.sum(jnp.where(values < low * factor, mass, 0))
        above = jnp.sum(jnp.where(values > high * factor, mass, 0))
        reference = kept + jnp.where(values == smallest, below, 0)
        reference = reference + jnp.where(values == largest, above, 0)
        code = jnp.clip(grid.codes(values) - fmt.limits[0], 0, codes - 1).astype(jnp.int32)
        per_code = jnp.zeros(codes).at[code].add(kept)
        bins = jnp.zeros(codes).at[code].add((kept > 0).astype(jnp.float32))
        spread = jnp.where(kept > 0, (per_code / jnp.maximum(bins, 1))[code], 0)
        p = reference / jnp.maximum(jnp.sum(reference), 1e-30)
        q = spread / jnp.maximum(jnp.sum(spread), 1e-30)
        # A clipped end whose bin was empty before has no mass in Q: the usual small number.
        ratio = jnp.where(p > 0, p / jnp.maximum(q, 1e-9), 1)
        return jnp.sum(p * jnp.log(ratio))

    factors = 2 ** (-jnp.arange(64) / 8)
    best = factors[jnp.argmin(lax.map(divergence, factors))]
    return low * best, high * best
