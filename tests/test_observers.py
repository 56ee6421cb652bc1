"""Observers against numpy on all data at once: streaming, merging, and what each is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jqnt import observers
from jqnt.errors import ConfigError
from jqnt.formats import BF16, PER_TENSOR, Granularity, Integer
from jqnt.quantizers import Cast

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(6, 5, 40)) * np.asarray([1, 2, 5, 0.5, 3])[:, None] + 0.3).astype(np.float32)
U8 = Integer(8)
S4 = Integer(4, signed=True)

ALL = {
    "minmax": observers.minmax(),
    "moving_average": observers.moving_average(),
    "deviations": observers.deviations(),
    "percentile": observers.percentile(99.0),
    "lp_norm": observers.lp_norm(),
    "mse": observers.mse(),
    "sqnr": observers.sqnr(),
    "entropy": observers.entropy(),
}


def seen(observer, batches, granularity=PER_TENSOR):
    """Under scan, as on a device."""
    batches = jnp.asarray(batches)
    start = observer.init(batches[0], granularity)
    state, _ = lax.scan(lambda s, x: (observer.update(s, x), None), start, batches)
    return state


def limits(quantizer):
    """The range that a quantizer covers."""
    qmin, qmax = Integer(int(quantizer.bits), quantizer.signed).limits
    z, s = np.asarray(quantizer.zero_point), np.asarray(quantizer.scale)
    return (qmin - z) * s, (qmax - z) * s


@pytest.mark.parametrize("name", ALL)
def test_streaming_is_seeing_all_at_once_and_merging_too(name):
    observer = ALL[name]
    if name == "moving_average":
        return
    whole = observer.finish(observer.update(observer.init(X), jnp.asarray(X)), U8, False)
    streamed = observer.finish(seen(observer, X), U8, False)
    merged = observer.finish(
        observer.merge(seen(observer, X[:2]), seen(observer, X[2:])), U8, False
    )
    for found in (streamed, merged):
        np.testing.assert_allclose(found.scale, whole.scale, rtol=2e-5)
        np.testing.assert_array_equal(found.zero_point, whole.zero_point)


@pytest.mark.parametrize("name", ALL)
def test_update_keeps_shapes_and_minifloats_need_no_range(name):
    observer = ALL[name]
    state = observer.init(X)
    after = jax.jit(observer.update)(state, jnp.asarray(X))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    shapes = [jax.tree.map(jnp.shape, s) for s in (state, after)]
    assert shapes[0] == shapes[1]
    assert observer.finish(after, BF16, False) == Cast(BF16)


@pytest.mark.parametrize(
    ("granularity", "axes"),
    [(PER_TENSOR, (0, 1, 2, 3)), (Granularity(1), (0, 1, 3)), (Granularity(-1), (0, 1, 2))],
)
def test_minmax_per_channel(granularity, axes):
    x = RNG.normal(size=(4, 3, 5, 7)).astype(np.float32)
    found = observers.minmax().finish(seen(observers.minmax(), x, granularity), U8, False)
    low, high = x.min(axes), x.max(axes)
    np.testing.assert_allclose(found.scale, (high - low) / 255, rtol=1e-6)
    assert found.granularity == granularity


def test_minmax_per_block_with_a_short_last_block():
    w = RNG.normal(size=(4, 10)).astype(np.float32)
    granularity = Granularity(1, 4)
    state = observers.minmax().init(w, granularity)
    found = observers.minmax().finish(observers.minmax().update(state, jnp.asarray(w)), S4, True)
    expected = [
        [max(-b.min() / 8, b.max() / 7, 0) for b in (row[:4], row[4:8], row[8:])] for row in w
    ]
    np.testing.assert_allclose(found.scale, expected, rtol=1e-6)


def test_moving_average_forgets():
    lows, highs = X.min((1, 2)), X.max((1, 2))
    low, high = lows[0], highs[0]
    for a, b in zip(lows[1:], highs[1:], strict=True):
        low, high = 0.9 * low + 0.1 * a, 0.9 * high + 0.1 * b
    state = seen(observers.moving_average(0.9), X)
    np.testing.assert_allclose([state.low, state.high], [low, high], rtol=1e-6)


def test_deviations_are_mean_and_spread():
    found = limits(observers.deviations(2.0).finish(seen(observers.deviations(), X), U8, False))
    mean, spread = X.mean(), X.std()
    np.testing.assert_allclose(found, [mean - 2 * spread, mean + 2 * spread], atol=0.03 * spread)
    per_channel = observers.deviations(1.0)
    found = per_channel.finish(seen(per_channel, X, Granularity(0)), U8, False)
    width = 2 * X.std((0, 2))
    assert found.scale.shape == (5,)
    np.testing.assert_allclose(np.asarray(found.scale) * 255, width, rtol=0.1)


@pytest.mark.parametrize("p", [99.9, 99.0, 90.0])
def test_percentile_leaves_out_both_ends(p):
    x = RNG.normal(size=(5, 4000)).astype(np.float32)
    observer = observers.percentile(p)
    low, high = limits(observer.finish(seen(observer, x), Integer(12), False))
    np.testing.assert_allclose([low, high], np.percentile(x, [100 - p, p]), atol=0.02)


def test_percentile_100_is_minmax_and_relu_keeps_its_zero():
    x = np.maximum(X, 0)
    observer = observers.percentile(100.0)
    found = observer.finish(seen(observer, x), U8, False)
    expected = observers.minmax().finish(seen(observers.minmax(), x), U8, False)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
    half = observers.percentile(60.0)
    assert float(half.finish(seen(half, x), U8, False).zero_point) == 0


@pytest.mark.parametrize("name", ["mse", "sqnr", "lp_norm", "entropy", "percentile"])
def test_an_outlier_is_clipped_and_minmax_is_not_moved(name):
    x = RNG.normal(size=(4, 5000)).astype(np.float32)
    x[2, 17] = 40
    found = ALL[name].finish(seen(ALL[name], x), S4, True)
    wide = observers.minmax().finish(seen(observers.minmax(), x), S4, True)
    assert float(wide.scale) == np.float32(40) / 7
    assert float(found.scale) < 0.3 * float(wide.scale)


def test_clipping_costs_more_in_sqnr_than_in_mse():
    state = seen(observers.mse(), RNG.standard_t(3, size=(4, 4000)).astype(np.float32))
    mse, sqnr = (o.finish(state, S4, True) for o in (observers.mse(), observers.sqnr(10.0)))
    assert float(sqnr.scale) > float(mse.scale)


@pytest.mark.parametrize("name", ["minmax", "deviations", "sqnr", "entropy"])
def test_one_sided_grids_have_their_zero_where_the_data_ask_for_it(name):
    observer = ALL[name]
    for x, zero, codes in ((np.abs(X), 0, 255), (X, 128, 127)):
        found = observer.finish(seen(observer, x), U8, "one_sided")
        assert float(found.zero_point) == zero
        whole = float(np.abs(x).max()) / codes
        if name == "minmax":
            np.testing.assert_allclose(found.scale, whole, rtol=0.01)
        assert 0.2 * whole < float(found.scale) <= 1.5 * whole


def test_channels_are_one_sided_each_for_itself():
    w = np.stack([np.abs(X[0, 0]), X[0, 1]])
    observer = observers.exact_mse()
    state = observer.update(observer.init(w, Granularity(0)), jnp.asarray(w))
    found = observer.finish(state, Integer(8, signed=True), "one_sided")
    np.testing.assert_array_equal(found.zero_point, [-128, 0])
    assert float(jnp.abs(found(jnp.asarray(w)) - w)[0].max()) <= 0.51 * float(found.scale[0])


@pytest.mark.parametrize("granularity", [PER_TENSOR, Granularity(0), Granularity(1, 16)])
def test_exact_mse_of_a_weight_beats_minmax_in_every_group(granularity):
    w = jnp.asarray(RNG.normal(size=(6, 64)), jnp.float32)
    errors = []
    for observer in (observers.exact_mse(), observers.minmax()):
        state = observer.update(observer.init(w, granularity), w)
        quantizer = observer.finish(state, S4, True)
        assert quantizer.scale.shape == granularity.scale_shape(w.shape)
        errors.append(granularity.groups((quantizer(w) - w) ** 2).sum(-1))
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert float(errors[0].sum()) < 0.95 * float(errors[1].sum())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: observers.percentile(40.0), "above 50"),
        (lambda: observers.moving_average(1.0), r"\[0, 1\)"),
        (lambda: observers.deviations(0.0), "positive"),
        (lambda: observers.lp_norm(0.0), "positive"),
        (lambda: observers.mse().init(X, Granularity(0)), "per tensor"),
    ],
)
def test_wrong_settings(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_many_tensors_at_once_are_each_as_alone():
    own = observers.exact_mse()
    assert own.finish_all is not None
    states = []
    for shape in ((8, 3, 3, 3), (16, 8, 1, 1), (10, 64), (600, 1200)):
        x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
        states.append(own.update(own.init(x, Granularity(0)), x))
    for some in (states[:3], states):  # padded to one length, and by classes of length
        for grid, state in zip(own.finish_all(some, S4, True), some, strict=True):
            alone = own.finish(state, S4, True)
            np.testing.assert_array_equal(grid.scale, alone.scale)
            np.testing.assert_array_equal(grid.zero_point, alone.zero_point)
            assert grid.granularity == alone.granularity
