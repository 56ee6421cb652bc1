"""The growing histogram against numpy's counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.histogram import BINS, add, empty, merge, points

RNG = np.random.default_rng(0)
ADD = jax.jit(add)
MERGE = jax.jit(merge)


def counted(x: np.ndarray, exponent: int) -> np.ndarray:
    index = np.floor(x.astype(np.float64) / 2.0**exponent).astype(np.int64) + BINS // 2
    return np.bincount(index.ravel(), minlength=BINS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=5), st.integers(0, 99))
def test_it_grows_without_losing_or_splitting_mass(magnitudes, seed):
    rng = np.random.default_rng(seed)
    batches = [(rng.normal(size=64) * 10.0**m).astype(np.float32) for m in magnitudes]
    state = empty()
    for batch in batches:
        state = ADD(state, jnp.asarray(batch))
    everything = np.concatenate(batches)
    expected = counted(everything, int(state.exponent))
    np.testing.assert_array_equal(state.counts, expected)
    assert float(state.low) == everything.min() and float(state.high) == everything.max()
    largest = np.abs(everything).max()
    assert largest / 2.0 ** int(state.exponent) >= BINS / 4


def test_merging_is_seeing_both():
    a, b = (RNG.normal(size=100).astype(np.float32) * s for s in (0.01, 30))
    merged = MERGE(ADD(empty(), jnp.asarray(a)), ADD(empty(), jnp.asarray(b)))
    both = ADD(empty(), jnp.concatenate([a, b]))
    for found, expected in zip(jax.tree.leaves(merged), jax.tree.leaves(both), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_empty_one_is_neutral_and_zeros_alone_count():
    some = ADD(empty(), jnp.asarray([0.0, 1.5, 0.0], jnp.float32))
    for found, expected in zip(
        jax.tree.leaves(MERGE(empty(), some)), jax.tree.leaves(some), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    zeros = ADD(empty(), jnp.zeros(7))
    assert float(zeros.zeros) == 7 and float(zeros.counts.sum()) == 7
    assert float(zeros.low) == float(zeros.high) == 0


def test_points_keep_all_mass_and_put_zeros_at_zero():
    x = np.maximum(RNG.normal(size=1000), 0).astype(np.float32)
    values, mass = points(ADD(empty(), jnp.asarray(x)))
    assert float(mass.sum()) == 1000
    assert float(values[-1]) == 0 and float(mass[-1]) == (x == 0).sum()
    mean = float((values * mass).sum() / mass.sum())
    assert mean == pytest.approx(x.mean(), abs=2e-3)
    assert float(values.max()) <= x.max()


def test_weights_count_as_repetition():
    x = jnp.asarray(RNG.normal(size=50).astype(np.float32))
    thrice = ADD(ADD(ADD(empty(), x), x), x)
    weighted = ADD(empty(), x, 3.0)
    np.testing.assert_array_equal(thrice.counts, weighted.counts)


def test_a_bin_counts_beyond_the_integers_of_float32():
    """A batch whose zeros alone exceed 2^24 is counted whole."""
    x = jnp.zeros(2**24 + 3)
    assert int(ADD(empty(), x).counts.sum()) == np.float32(2**24 + 3)
