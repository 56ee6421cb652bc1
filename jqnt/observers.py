"""Observers: streaming statistics of a tensor, and the grid that they lead to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt import histogram
from jqnt.clipping import grid_of_range, least_divergent_range, least_error_grid
from jqnt.errors import ConfigError
from jqnt.formats import Format, Integer, Microscaling, Minifloat
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.quantizers import Affine, Cast, Microscaled
from jqnt.types import Leaf, Symmetry

__all__ = [
    "MINMAX",
    "Observer",
    "affine_of_range",
    "deviations",
    "entropy",
    "exact_mse",
    "lp_norm",
    "minmax",
    "moving_average",
    "mse",
    "percentile",
    "sqnr",
]


Grid = Affine | Cast | Microscaled


class Observer(NamedTuple):
    """Statistics as pure functions on a pytree of fixed shapes, for jit, scan and several devices.

    `init(x, granularity) -> state` for tensors like x (an array or a ShapeDtypeStruct),
    `update(state, x, weight=1.0) -> state`, `merge(state, state) -> state`, and
    `finish(state, format, symmetric) -> quantizer`. Where that is `affine_of_range` of a range,
    whatever the format, `covers(state) -> (low, high)` gives it, so that the grids of all tensors
    can be made at once; `finish_all(states, format, symmetric) -> quantizers`, if there is one, is
    `finish` of many by few programs.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, Format, Symmetry], Affine | Cast | Microscaled]
    covers: Callable[[Any], tuple[Any, Any]] | None = None
    finish_all: Callable[[Sequence[Any], Format, Symmetry], list[Grid]] | None = None


@struct.dataclass
class Range:
    """The smallest and largest values, in the shape that `granularity` says, and the mass seen."""

    low: Leaf
    high: Leaf
    mass: Leaf
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)


@struct.dataclass
class Moments:
    """Mean, sum of squared deviations, and the range of what was seen."""

    mean: Leaf
    squares: Leaf
    range: Range


@struct.dataclass
class Held:
    """The tensor itself, with one group of values per scale: a weight is seen once."""

    groups: Leaf
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)


def affine_of_range(
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    fmt: Format,
    symmetric: Symmetry,
    granularity: Granularity = PER_TENSOR,
) -> Grid:
    """The quantizer of `fmt` that covers [low, high] and zero.

    A minifloat of 16 bits or more needs no range. Microscaled blocks need one only for the scale
    of the whole tensor, if they have one, and get their axis by `replace`.
    """
    if isinstance(fmt, Minifloat) and not fmt.scaled:
        return Cast(fmt)
    if isinstance(fmt, Microscaling):
        if fmt.scale is None or not isinstance(fmt.element, Minifloat):
            return Microscaled(jnp.float32(1), fmt)
        most = fmt.element.max * fmt.scale.max
        largest = jnp.max(jnp.maximum(-low, high)) / most
        return Microscaled(jnp.where(largest > 0, largest, 1).astype(jnp.float32), fmt)
    return replace(grid_of_range(low, high, fmt, symmetric), granularity=granularity)


def minmax() -> Observer:
    """The range seen so far, for each scale of the granularity."""
    return Observer(_no_range, _add_range, _union, _whole_range, _ends)


def moving_average(decay: float = 0.9) -> Observer:
    """low_t = decay * low_{t-1} + (1 - decay) * min(x_t), and high alike; the first batch counts
    whole. Merged states count by what they saw. Source: Jacob et al. 2018, section 3.1.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"a moving average decays by a factor in [0, 1), not {decay}")

    def update(state: Range, x: Float[Array, "..."], weight: Any = 1.0) -> Range:
        low, high = _range_of(x, state.granularity)
        keep = jnp.where(state.mass > 0, decay, 0.0)
        return replace(
            state,
            low=_mixed(keep, state.low, low),
            high=_mixed(keep, state.high, high),
            mass=state.mass + weight,
        )

    def merge(a: Range, b: Range) -> Range:
        share = a.mass / jnp.maximum(a.mass + b.mass, 1e-30)
        return replace(
            a,
            low=_mixed(share, a.low, b.low),
            high=_mixed(share, a.high, b.high),
            mass=a.mass + b.mass,
        )

    return Observer(_no_range, update, merge, _whole_range, _ends)


def deviations(k: float = 3.0) -> Observer:
    """mean +- k * standard deviation, no wider than what was seen; per tensor or per channel.

    Batches are combined as Chan et al. 1979 do.
    """
    if k <= 0:
        raise ConfigError(f"the number of standard deviations is positive, not {k}")

    def init(x: Any, granularity: Granularity = PER_TENSOR) -> Moments:
        seen = _no_range(x, granularity)
        zeros = jnp.zeros_like(seen.low)
        return Moments(zeros, zeros, seen)

    def update(state: Moments, x: Float[Array, "..."], weight: Any = 1.0) -> Moments:
        groups = state.range.granularity.groups(x)
        mean = groups.mean(-1)
        squares = jnp.sum((groups - mean[..., None]) ** 2, -1) * weight
        low, high = groups.min(-1), groups.max(-1)
        mass = jnp.float32(groups.shape[-1] * weight)
        return merge(
            state, Moments(mean, squares, replace(state.range, low=low, high=high, mass=mass))
        )

    def merge(a: Moments, b: Moments) -> Moments:
        total = a.range.mass + b.range.mass
        share = b.range.mass / jnp.maximum(total, 1e-30)
        step = b.mean - a.mean
        squares = a.squares + b.squares + step**2 * a.range.mass * share
        return Moments(a.mean + step * share, squares, _union(a.range, b.range))

    def finish(state: Moments, fmt: Format, symmetric: Symmetry) -> Grid:
        seen = state.range
        if isinstance(fmt, Microscaling):
            return _whole_range(seen, fmt, symmetric)
        reach = k * jnp.sqrt(state.squares / jnp.maximum(seen.mass, 1e-30))
        low = jnp.maximum(state.mean - reach, seen.low)
        high = jnp.minimum(state.mean + reach, seen.high)
        return affine_of_range(low, high, fmt, symmetric, seen.granularity)

    return Observer(init, update, merge, finish)


def percentile(p: float = 99.99) -> Observer:
    """The range that leaves out (100 - p) percent of the values at either end."""
    if not 50 < p <= 100:
        raise ConfigError(f"a percentile lies above 50 and up to 100, not at {p}")

    def grid_of(state: histogram.Histogram, fmt: Narrow, symmetric: Symmetry) -> Grid:
        values, total = histogram.centres(state), jnp.sum(state.counts)
        share = jnp.cumsum(state.counts) / jnp.maximum(total, 1e-30)
        # The first value at or below which a share of 1 - p/100 lies, and the first at p/100.
        low = values[jnp.searchsorted(share, (1 - p / 100) + 1e-7)]
        high = values[jnp.minimum(jnp.searchsorted(share, p / 100 - 1e-7), len(values) - 1)]
        low, high = jnp.maximum(low, state.low), jnp.minimum(high, state.high)
        return grid_of_range(low, high, fmt, symmetric)

    return _histogram_observer(grid_of)


def lp_norm(power: float = 2.4, clip_weight: float = 1.0) -> Observer:
    """The range of the least sum |x - q(x)|^power; clipped values count `clip_weight` times."""
    if power <= 0 or clip_weight <= 0:
        raise ConfigError("the power and the weight of clipped values are positive")

    def grid_of(state: histogram.Histogram, fmt: Narrow, symmetric: Symmetry) -> Grid:
        values, mass = histogram.points(state)
        width = jnp.ldexp(jnp.float32(1), state.exponent)
        return least_error_grid(values, mass, fmt, symmetric, power, clip_weight, width)

    return _histogram_observer(grid_of)


def mse() -> Observer:
    """The range of the least mean squared error."""
    return lp_norm(2.0)


def sqnr(clip_weight: float = 3.0) -> Observer:
    """The range of the best signal-to-noise ratio, in which clipping costs `clip_weight` times
    what rounding does ("tf-enhanced")."""
    return lp_norm(2.0, clip_weight)


def entropy() -> Observer:
    """The range whose quantized distribution is closest to that of the values."""

    def grid_of(state: histogram.Histogram, fmt: Narrow, symmetric: Symmetry) -> Grid:
        if not isinstance(fmt, Integer) or fmt.even:
            raise ConfigError(f"entropy is for integers with a zero, not for {fmt.name}")
        low, high = least_divergent_range(*histogram.points(state), fmt, symmetric)
        return grid_of_range(low, high, fmt, symmetric)

    return _histogram_observer(grid_of)


def exact_mse(power: float = 2.0, clip_weight: float = 1.0) -> Observer:
    """The range of the least error on the tensor itself, for each scale: for weights.

    The state is the tensor that was seen last.
    """

    def init(x: Any, granularity: Granularity = PER_TENSOR) -> Held:
        shape = jax.eval_shape(granularity.groups, jax.ShapeDtypeStruct(x.shape, jnp.float32)).shape
        return Held(jnp.zeros(shape, jnp.float32), granularity)

    def update(state: Held, x: Float[Array, "..."], weight: Any = 1.0) -> Held:
        return replace(state, groups=state.granularity.groups(x))

    def merge(a: Held, b: Held) -> Held:
        return b

    def finish(state: Held, fmt: Format, symmetric: Symmetry) -> Grid:
        if isinstance(fmt, Microscaling) or (isinstance(fmt, Minifloat) and not fmt.scaled):
            return affine_of_range(state.groups.min(), state.groups.max(), fmt, symmetric)
        mass = jnp.ones_like(state.groups)
        grid = _least_error(state.groups, mass, fmt, symmetric, power, clip_weight)
        return replace(grid, granularity=state.granularity)

    def finish_all(states: Sequence[Held], fmt: Format, symmetric: Symmetry) -> list[Grid]:
        if isinstance(fmt, Microscaling) or (isinstance(fmt, Minifloat) and not fmt.scaled):
            return [finish(state, fmt, symmetric) for state in states]
        found: dict[int, Grid] = {}
        for members in _alike([np.shape(state.groups) for state in states]):
            groups = [np.asarray(states[i].groups) for i in members]
            grids = _joined(
                groups,
                partial(
                    _least_error, fmt=fmt, symmetric=symmetric, power=power, clip_weight=clip_weight
                ),
            )
            for i, grid in zip(members, grids, strict=True):
                found[i] = replace(grid, granularity=states[i].granularity)
        return [found[i] for i in range(len(states))]

    return Observer(init, update, merge, finish, finish_all=finish_all)


_PADDED = 1 << 19
"""Groups of any length are padded to one, if that makes no more values than these."""


def _alike(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Which of [*groups, n] go together, by n: all, or those of n between the same powers of 4."""
    longest = max(shape[-1] for shape in shapes)
    few = sum(math.prod(shape[:-1]) for shape in shapes) * longest <= _PADDED
    found: dict[int, list[int]] = {}
    for i, shape in enumerate(shapes):
        found.setdefault(0 if few else (shape[-1] - 1).bit_length() // 2, []).append(i)
    return list(found.values())


def _joined(groups: Sequence[np.ndarray], finish: Callable[..., Grid]) -> list[Grid]:
    """`finish(values, mass)` of all groups at once, padded with values of no mass."""
    longest = max(own.shape[-1] for own in groups)
    rows = [own.reshape(-1, own.shape[-1]) for own in groups]
    values, mass = (
        np.concatenate([np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for x in parts])
        for parts in (rows, [np.ones_like(own) for own in rows])
    )
    whole = jax.device_get(finish(values, mass))
    return jax.device_put(parted(whole, [own.shape[:-1] for own in groups]))


def parted(grid: Grid, shapes: Sequence[tuple[int, ...]]) -> list[Grid]:
    """The grids, with scales of these shapes, that lie one after the other in a flat one."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    leaves, structure = jax.tree.flatten(grid)
    columns = [
        [leaf] * len(shapes)
        if np.ndim(leaf) == 0
        else [x.reshape(shape) for x, shape in zip(np.split(leaf, ends), shapes, strict=True)]
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, own) for own in zip(*columns, strict=True)]


_least_error = jax.jit(
    least_error_grid, static_argnames=("fmt", "symmetric", "power", "clip_weight")
)


Narrow = Integer | Minifloat


def _histogram_observer(grid_of: Callable[..., Grid]) -> Observer:
    """An observer on a histogram; `grid_of(histogram, format, symmetric) -> Grid`."""
    compiled = jax.jit(grid_of, static_argnums=(1, 2))

    def init(x: Any, granularity: Granularity = PER_TENSOR) -> histogram.Histogram:
        if granularity != PER_TENSOR:
            raise ConfigError(
                "histograms are kept per tensor; for a range per channel use minmax, "
                "moving_average or deviations, for weights also exact_mse"
            )
        return histogram.empty()

    def finish(state: histogram.Histogram, fmt: Format, symmetric: Symmetry) -> Grid:
        if isinstance(fmt, Microscaling) or (isinstance(fmt, Minifloat) and not fmt.scaled):
            return affine_of_range(state.low, state.high, fmt, symmetric)
        return compiled(state, fmt, symmetric)

    return Observer(init, histogram.add, histogram.merge, finish)


def _range_of(x: Float[Array, "..."], granularity: Granularity) -> tuple[Any, Any]:
    groups = granularity.groups(x)
    return groups.min(-1), groups.max(-1)


def _no_range(x: Any, granularity: Granularity = PER_TENSOR) -> Range:
    shape = granularity.scale_shape(tuple(x.shape))
    infinite = np.full(shape, np.inf, np.float32)
    return Range(infinite, -infinite, np.float32(0), granularity)


def _add_range(state: Range, x: Float[Array, "..."], weight: Any = 1.0) -> Range:
    low, high = _range_of(x, state.granularity)
    return _union(state, Range(low, high, jnp.float32(weight), state.granularity))


def _union(a: Range, b: Range) -> Range:
    return replace(
        a, low=jnp.minimum(a.low, b.low), high=jnp.maximum(a.high, b.high), mass=a.mass + b.mass
    )


def _whole_range(state: Range, fmt: Format, symmetric: Symmetry) -> Grid:
    return affine_of_range(state.low, state.high, fmt, symmetric, state.granularity)


def _ends(state: Range) -> tuple[Any, Any]:
    return state.low, state.high


def _mixed(share: Array, a: Array, b: Array) -> Array:
    """share * a + (1 - share) * b, where an a without a share may be infinite."""
    return jnp.where(share > 0, share * jnp.where(share > 0, a, 0), 0) + (1 - share) * b


MINMAX = minmax()
"""The default."""
