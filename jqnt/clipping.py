"""Searches for the range to quantize: what is clipped against how finely the rest is divided."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jqnt.affine import divide, scale_of_range
from jqnt.formats import Integer, Minifloat
from jqnt.quantizers import Affine, Cast
from jqnt.types import Symmetry

__all__ = ["grid_of_range", "least_divergent_range", "least_error_grid"]


def grid_of_range(
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    fmt: Integer | Minifloat,
    symmetric: Symmetry,
) -> Affine | Cast:
    """The grid that covers [low, high] and zero, one scale per element.

    An even grid and a minifloat are alike on both sides, whatever `symmetric` says.
    """
    if isinstance(fmt, Minifloat):
        return Cast(fmt, _reaching(low, high, fmt.max))
    bits = jnp.float32(fmt.bits)
    if fmt.shifted:
        scale = _reaching(low, high, fmt.limits[1] + 0.5)
        return Affine(scale, jnp.zeros_like(scale), bits, shifted=True)
    even = fmt.even or symmetric
    scale, zero = scale_of_range(low, high, bits, fmt.signed, even, fmt.strict)
    return Affine(scale, zero, bits, fmt.signed, fmt.strict)


def least_error_grid(
    values: Float[Array, "*groups n"],
    mass: Float[Array, "*groups n"],
    fmt: Integer | Minifloat,
    symmetric: Symmetry,
    power: float = 2.0,
    clip_weight: float = 1.0,
    width: Float[Array, ""] | float = 0.0,
) -> Affine | Cast:
    """The grid per group that minimizes sum_i mass_i * c_i * |values_i - q(values_i)|^power.

    c_i is `clip_weight` where a value lies more than half a step beyond the grid, else 1. With
    s the scale that covers all values of some mass, the scales tried are s * 2^k for k from 1/2
    to -8, half an octave apart, together with 17 evenly spaced zero points if the grid is
    asymmetric; then, four times, closer ones around the best, down to neighbouring zero points.

    `width` is that of histogram bins: on a grid finer than two of them the error inside is that
    of evenly spread values, (scale / 2)^power / (power + 1).
    """
    seen = mass > 0
    low = jnp.min(jnp.where(seen, values, 0), axis=-1)
    high = jnp.max(jnp.where(seen, values, 0), axis=-1)
    whole = grid_of_range(low, high, fmt, symmetric)
    integer = isinstance(fmt, Integer)
    symmetric = symmetric or not integer or fmt.even
    qmin, qmax = fmt.limits if integer else (0, 0)

    def at(octave, zero):
        grid = replace(whole, scale=whole.scale * 2**octave)
        return replace(grid, zero_point=zero) if integer else grid

    def error(candidate):
        octave, zero = candidate
        grid = at(octave, zero)
        scale = grid.scale[..., None]
        zeros = {"zero_point": zero[..., None]} if integer else {}
        distance = jnp.abs(values - replace(grid, scale=scale, **zeros)(values))
        if isinstance(fmt, Minifloat):
            clipped = jnp.abs(values) > fmt.max * scale
            weight = jnp.where(clipped, clip_weight, 1)
            return jnp.sum(mass * weight * distance**power, axis=-1)
        spread = (scale / 2) ** power / (power + 1)
        inner = jnp.where(scale < 2 * width, spread, distance**power)
        clipped = distance > 0.5001 * scale
        return jnp.sum(mass * jnp.where(clipped, clip_weight * distance**power, inner), axis=-1)

    def best(octaves, zeros):
        """Of candidates along the first axis, the one that errs least."""
        chosen = jnp.argmin(lax.map(error, (octaves, zeros)), axis=0)[None]
        return tuple(jnp.take_along_axis(x, chosen, 0)[0] for x in (octaves, zeros))

    def moved(x, steps):
        """`x` plus each of `steps`, along a new first axis."""
        return x[None] + steps.reshape(-1, *(1,) * low.ndim)

    def refine(found, reach):
        if symmetric:
            octaves, zeros = jnp.linspace(-1, 1, 33) * reach[0], jnp.zeros(33)
        else:
            octaves, zeros = _pairs(jnp.linspace(-1, 1, 17) * reach[0], jnp.linspace(-1, 1, 9))
            zeros = jnp.round(zeros * reach[1])
        return best(moved(found[0], octaves), jnp.clip(moved(found[1], zeros), qmin, qmax)), None

    octaves, gap = jnp.arange(-16, 2) / 2, (qmax - qmin) / 16
    zeros = jnp.broadcast_to(
        whole.zero_point if isinstance(whole, Affine) else jnp.float32(0), low.shape
    )
    if symmetric:
        start = best(moved(jnp.zeros_like(low), octaves), moved(zeros, 0 * octaves))
    else:
        octaves, codes = _pairs(octaves, jnp.round(jnp.linspace(qmin, qmax, 17)))
        start = best(moved(jnp.zeros_like(low), octaves), moved(0 * zeros, codes))
    reaches = jnp.asarray([[0.5, gap], [0.25, gap / 4], [1 / 16, gap / 16], [1 / 64, gap / 64]])
    (octave, zero), _ = lax.scan(refine, start, jnp.maximum(reaches, jnp.asarray([0, 4.0])[None]))
    return at(octave, zero)


def least_divergent_range(
    values: Float[Array, " n"], mass: Float[Array, " n"], fmt: Integer, symmetric: Symmetry
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The (low, high) whose quantized distribution is closest in Kullback-Leibler divergence.

    D(P || Q) = sum P log(P / Q), where P is the histogram with what is clipped added to its
    ends, and Q the clipped histogram with the mass of each code spread evenly over the bins
    with mass that fall on the code. 64 factors 2^(-k/8) on the whole range. Source: Migacz 2017
    (8-bit inference with TensorRT), for any grid.
    """
    seen = mass > 0
    low = jnp.min(jnp.where(seen, values, 0))
    high = jnp.max(jnp.where(seen, values, 0))
    if symmetric:
        both = jnp.maximum(-low, high)
        low = jnp.where(low < 0, -both, 0) if symmetric == "one_sided" else -both
        high = both
    # 16 bits have more codes than the histogram bins; more would only cost memory.
    codes = 2 ** min(fmt.bits, 16)

    def divergence(factor):
        grid = grid_of_range(low * factor, high * factor, fmt, symmetric)
        assert isinstance(grid, Affine)
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


def _pairs(a: Float[Array, " m"], b: Float[Array, " n"]) -> tuple[Any, Any]:
    """Every element of a with every one of b, as two vectors."""
    first, second = jnp.meshgrid(a, b)
    return first.reshape(-1), second.reshape(-1)


def _reaching(low: Float[Array, "..."], high: Float[Array, "..."], largest: float) -> Any:
    """The scale at which `largest` is max(-low, high); 1 for a range of zero."""
    scale = divide(jnp.maximum(-jnp.minimum(low, 0), high), jnp.float32(largest))
    return jnp.where(scale > jnp.finfo(jnp.float32).tiny, scale, 1).astype(jnp.float32)
