"""Grids of scales, other ways to round, grids half a step off zero: against numpy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.errors import ConfigError, DataError, UnsupportedError
from jqnt.formats import Integer, format_named
from jqnt.freeze import freeze
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.learn.rounding import soft_of
from jqnt.observers import exact_mse, minmax
from jqnt.quantizers import Affine, Stochastic
from jqnt.rounding import rounded
from jqnt.scales import IntegerScales, PowersOfTwo, gridded

RNG = np.random.default_rng(0)
RUN = jax.jit(lambda quantizer, x: quantizer(x))
X = RNG.normal(size=(6, 64)).astype(np.float32)
GRAPH = Graph("g", nodes=(), inputs=("x",), outputs=("x",), params=("w",))


def affine(scale, bits=4, **static):
    return Affine(jnp.float32(scale), jnp.float32(0), jnp.float32(bits), **static)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("half_even", [-2, -2, 0, 0, 0, 2, 2, 3]),
        ("half_away", [-3, -2, -1, 0, 1, 2, 3, 3]),
        ("floor", [-3, -2, -1, 0, 0, 1, 2, 3]),
    ],
)
def test_ties(how, expected):
    ties = jnp.asarray([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.0])
    np.testing.assert_array_equal(rounded(ties, how), expected)


def test_just_below_a_tie_rounds_down():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert float(rounded(jnp.float32(below), "half_away")) == 0


@pytest.mark.parametrize("how", ["half_away", "floor"])
def test_a_quantizer_rounds_as_it_says_and_its_weights_keep_the_codes(how):
    v = np.concatenate([X.reshape(-1) / np.float32(0.25), np.arange(-9, 9) + np.float32(0.5)])
    x = jnp.asarray(v * np.float32(0.25))
    code = np.floor(v) if how == "floor" else np.sign(v) * np.floor(np.abs(v) + 0.5)
    expected = np.clip(code, -8, 7) * np.float32(0.25)
    quantizer = affine(0.25, rounding=how)
    np.testing.assert_array_equal(np.asarray(RUN(quantizer, x)), expected)
    params, encodings = freeze(GRAPH, {"w": np.asarray(x)}, {"w": quantizer})
    np.testing.assert_array_equal(encodings["w"].quantize(params["w"]), np.clip(code, -8, 7))
    with pytest.raises(UnsupportedError, match="computed"):
        freeze(GRAPH, {"w": np.asarray(x)}, {"x": quantizer})


def test_stochastic_rounding_is_right_on_average_and_its_gradient_is_that_of_the_identity():
    quantizer = affine(1.0)
    x = jnp.full(200_000, 2.3)
    y = np.asarray(Stochastic(quantizer, jax.random.key(0))(x))
    assert set(np.unique(y)) == {2.0, 3.0}
    # Four standard errors of a Bernoulli mean.
    assert abs(y.mean() - 2.3) < 4 * np.sqrt(0.3 * 0.7 / y.size)
    again = Stochastic(quantizer, jax.random.key(0))(x)
    np.testing.assert_array_equal(again, y)
    assert not np.array_equal(Stochastic(quantizer, jax.random.key(1))(x), y)
    grad = jax.grad(lambda x: Stochastic(quantizer, jax.random.key(0))(x).sum())
    np.testing.assert_array_equal(grad(jnp.asarray([0.4, 50.0])), [1, 0])


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_shifted_grid_is_even_about_zero(bits):
    fmt = Integer(bits, signed=True, shifted=True)
    observer = minmax()
    found = observer.finish(observer.update(observer.init(X), jnp.asarray(X)), fmt, True)
    half = 2.0 ** (bits - 1)
    scale = np.abs(X).max() / np.float32(half - 0.5)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    levels = np.arange(-half, half) + 0.5
    nearest = levels[np.abs(X[..., None] / scale - levels).argmin(-1)] * scale
    np.testing.assert_allclose(np.asarray(found(jnp.asarray(X))), nearest, rtol=1e-6)
    # Kept as odd codes of half the scale.
    params, encodings = freeze(GRAPH, {"w": X}, {"w": found})
    codes = encodings["w"].quantize(params["w"])
    assert (codes % 2 == 1).all() and encodings["w"].format == Integer(bits + 1, signed=True)
    np.testing.assert_allclose(encodings["w"].dequantize(codes), nearest, rtol=1e-6)


def test_the_step_of_a_shifted_grid_has_the_gradient_of_its_surrogate():
    x, s = np.asarray([0.2, -0.7, 1.3, 9.0, -9.0]), 0.9
    v = x / s - 0.5
    code = np.clip(np.rint(v), -2, 1)
    inside = (v >= -2) & (v <= 1)
    expected = np.where(inside, code - v, code + 0.5).sum()
    quantizer = affine(s, 2, shifted=True)
    grads = jax.grad(lambda q: q(jnp.asarray(x, jnp.float32)).sum())(quantizer)
    np.testing.assert_allclose(grads.scale, expected, rtol=1e-5)


def test_powers_of_two_cover_the_range():
    scales = jnp.asarray([0.3, 0.5, 0.51, 1e-30, 7.0])
    expected = 2.0 ** np.ceil(np.log2(np.asarray(scales, np.float64)))
    np.testing.assert_array_equal(gridded(scales, PowersOfTwo()), expected.astype(np.float32))
    slope = jax.grad(lambda s: gridded(s, PowersOfTwo()))(jnp.float32(0.3))
    np.testing.assert_allclose(slope, 0.5 / 0.3, rtol=1e-6)


def test_integer_block_scales_are_those_of_the_definition():
    scale = RNG.uniform(0.01, 1, size=(3, 8)).astype(np.float32)
    found = np.asarray(gridded(jnp.asarray(scale), IntegerScales(4, 0)))
    channel = scale.max(1, keepdims=True) / np.float32(16)
    steps = np.clip(np.rint(scale / channel), 1, 16)
    np.testing.assert_array_equal(found, channel * steps.astype(np.float32))
    twice = gridded(jnp.asarray(found), IntegerScales(4, 0))
    np.testing.assert_array_equal(twice, found)
    weight = Affine(
        jnp.asarray(scale), jnp.zeros((3, 8)), jnp.float32(4),
        granularity=Granularity(1, 8), scale_format=IntegerScales(4, 0),
    )  # fmt: skip
    x = jnp.asarray(X[:3])
    spread = np.repeat(found, 8, 1)
    expected = np.clip(np.rint(X[:3] / spread), -8, 7) * spread
    np.testing.assert_array_equal(np.asarray(weight(x)), expected)
    _, encodings = freeze(GRAPH, {"w": X[:3]}, {"w": weight})
    np.testing.assert_array_equal(encodings["w"].scale, found)
    np.testing.assert_array_equal(np.asarray(soft_of(weight, jnp.zeros((3, 64))).scale), found)


def test_exact_search_works_on_shifted_grids():
    fmt = format_named("int2_shifted")
    x = jnp.asarray(RNG.standard_t(3, size=(4, 512)), jnp.float32)
    errors = []
    for observer in (exact_mse(), minmax()):
        found = observer.finish(observer.update(observer.init(x, Granularity(0)), x), fmt, True)
        errors.append(float(((found(x) - x) ** 2).sum()))
    assert errors[0] < 0.8 * errors[1]


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="even about zero"):
        Integer(2, signed=False, shifted=True)
    with pytest.raises(ConfigError, match="1 to 8 bits"):
        IntegerScales(9)
    with pytest.raises(UnsupportedError, match="shifted"):
        soft_of(affine(1.0, 2, shifted=True), jnp.zeros(3))
    with pytest.raises(DataError, match="odd codes"):
        from jqnt.encodings import Encoding

        Encoding(format_named("int2_shifted"), np.float32(1), np.int64(0))
