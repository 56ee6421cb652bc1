"""Range searches against brute force on the values themselves, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.clipping import least_divergent_range, least_error_grid
from jqnt.formats import Integer

RNG = np.random.default_rng(0)


def error(x, scale, zero, fmt, power=2.0, clip_weight=1.0):
    """By the definition, in numpy."""
    q = (np.clip(np.rint(x / scale) + zero, *fmt.limits) - zero) * scale
    distance = np.abs(x - q)
    weight = np.where(distance > 0.5001 * scale, clip_weight, 1)
    return float((weight * distance**power).sum())


def brute(x, fmt, symmetric, **how):
    """The least error over a dense set of scales and all zero points."""
    top = np.abs(x).max() / max(fmt.limits[1] if symmetric else 1, 1)
    scales = top * 2.0 ** -np.arange(0, 9, 1 / 24)
    middle = 0 if fmt.signed else 2 ** (fmt.bits - 1)
    zeros = [middle] if symmetric else range(fmt.limits[0], fmt.limits[1] + 1)
    return min(error(x, s, z, fmt, **how) for s in scales for z in zeros)


SEARCH = jax.jit(least_error_grid, static_argnums=(2, 3, 4, 5))

SHAPES = {
    "normal": RNG.normal(size=600),
    "relu": np.maximum(RNG.normal(size=600), 0),
    "heavy": RNG.standard_t(2, size=600),
    "one outlier": np.append(RNG.normal(size=600), 40.0),
    "shifted": RNG.normal(size=600) + 2,
}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_least_error_is_found(shape, symmetric, bits):
    x = SHAPES[shape]
    fmt = Integer(bits, signed=symmetric)
    for how in ({}, {"power": 2.4}, {"clip_weight": 3.0}):
        found = SEARCH(
            jnp.asarray(x, jnp.float32),
            jnp.ones(x.shape),
            fmt,
            symmetric,
            how.get("power", 2.0),
            how.get("clip_weight", 1.0),
        )
        least = brute(x, fmt, symmetric, **how)
        assert error(x, float(found.scale), float(found.zero_point), fmt, **how) <= 1.03 * least


def test_every_group_has_its_own():
    x = RNG.normal(size=(3, 200)) * np.asarray([[1.0], [10.0], [0.1]])
    fmt = Integer(3, signed=True)
    found = SEARCH(jnp.asarray(x, jnp.float32), jnp.ones((3, 200)), fmt, True, 2.0, 1.0)
    for row, scale in zip(x, found.scale, strict=True):
        assert error(row, float(scale), 0, fmt) <= 1.03 * brute(row, fmt, True)


def test_mass_weighs_and_empty_values_do_not_count():
    x = jnp.asarray([-1.0, 1.0, 100.0])
    found = SEARCH(x, jnp.asarray([5.0, 5.0, 0.0]), Integer(4, True), True, 2.0, 1.0)
    assert float(found.scale) <= 0.142858


def test_one_bit_grids_are_searched_as_they_round():
    x = jnp.asarray(RNG.normal(size=2000), jnp.float32)
    grid = SEARCH(x, jnp.ones(2000), Integer(1, True, strict=True), True, 2.0, 1.0)
    # The best two-level grid {-s, s} has s = E|x|.
    assert float(grid.scale) == pytest.approx(float(jnp.abs(x).mean()), rel=0.03)


def test_bins_wider_than_the_grid_count_as_evenly_spread():
    """At 16 bits the centre of a bin may lie on the grid by chance; clipping must not follow."""
    values = (jnp.arange(2048) + 0.5) / 2048
    found = SEARCH(values, jnp.ones(2048), Integer(16), False, 2.0, 1.0, jnp.float32(1 / 2048))
    assert float(found.scale) * 65535 >= 0.99 and float(found.zero_point) == 0


def divergence(x, edges, low, high, fmt):
    """Kullback-Leibler by the definition on numpy's own histogram."""
    counts, _ = np.histogram(x, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    inside = (centres >= low) & (centres <= high)
    p = np.where(inside, counts, 0).astype(float)
    p[np.flatnonzero(inside)[0]] += counts[centres < low].sum()
    p[np.flatnonzero(inside)[-1]] += counts[centres > high].sum()
    scale = (high - low) / (fmt.limits[1] - fmt.limits[0])
    code = np.clip(np.rint(centres / scale) + np.rint(-low / scale), *fmt.limits)
    q = np.zeros_like(p)
    for c in np.unique(code):
        here = (code == c) & inside & (counts > 0)
        if here.any():
            q[here] = counts[here].sum() / here.sum()
    p, q = p / p.sum(), q / q.sum()
    return (p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-9))).sum()


def test_the_least_divergence_is_found():
    x = np.maximum(np.append(RNG.normal(size=20000), RNG.normal(size=20) * 8), 0)
    edges = np.linspace(0, x.max(), 2049)
    counts, _ = np.histogram(x, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    fmt = Integer(4)
    low, high = least_divergent_range(
        jnp.asarray(centres, jnp.float32), jnp.asarray(counts, jnp.float32), fmt, False
    )
    assert float(low) == 0
    top = centres[counts > 0].max()
    candidates = [divergence(x, edges, 0.0, top * 2 ** (-k / 8), fmt) for k in range(64)]
    assert divergence(x, edges, 0.0, float(high), fmt) <= 1.02 * min(candidates)
    assert float(high) < 0.9 * top
