"""Range parametrizations: forward passes against numpy, gradients against the papers' formulas
and against finite differences of what each one substitutes for the staircase."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt import ranges
from jqnt.errors import ConfigError
from jqnt.formats import Granularity, Integer
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.graph.layout import last_quantizer
from jqnt.parametrize import parametrize, settle
from jqnt.plan import Plan, Spec, bind
from jqnt.quantizers import Affine, Stochastic
from jqnt.ranges import Dsq, Ewgs, Lsq, LsqPlus, MinMax, Pact, Qil, Tqt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5, 4)).astype(np.float32)
G = RNG.normal(size=X.shape).astype(np.float32)
SIGNED = Affine(jnp.float32(0.3), jnp.float32(0), jnp.float32(3))
UNSIGNED = Affine(jnp.float32(0.11), jnp.float32(0), jnp.float32(4), signed=False)
SHIFTED = Affine(jnp.float32(0.17), jnp.float32(6), jnp.float32(4), signed=False)


def pulled(quantizer, x=X, g=G):
    """(the gradient of sum g * quantizer(x) in the quantizer's leaves, the one in x)."""
    return jax.grad(lambda q, x: jnp.sum(g * q(x)), argnums=(0, 1))(quantizer, jnp.asarray(x))


def numpy_grid(affine, x):
    """Codes and values in float64."""
    s, z, b = (np.asarray(v, np.float64) for v in (affine.scale, affine.zero_point, affine.bits))
    if np.ndim(s):
        s, z = (v.reshape([-1 if d == affine.granularity.axis else 1 for d in range(x.ndim)])
                for v in (s, z))  # fmt: skip
    low, high = (-(2 ** (b - 1)), 2 ** (b - 1) - 1) if affine.signed else (0, 2**b - 1)
    low = -high if affine.strict else low
    code = np.clip(np.round(x.astype(np.float64) / s) + z, low, high) - z
    return code, code * s, low - z, high - z


@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED, SHIFTED])
@pytest.mark.parametrize("name", ["lsq", "lsq_plus", "min_max", "dsq", "ewgs", "tqt", "pact"])
def test_starts_on_the_grid_it_was_made_from(name, grid):
    if name in ("tqt", "pact") and grid is SHIFTED:
        with pytest.raises(ConfigError, match="no zero point: plan the tensor symmetric"):
            getattr(ranges, name)(grid)
        return
    if name == "tqt":  # a power of two stays what it is
        grid = replace(grid, scale=jnp.float32(0.25))
    made = getattr(ranges, name)(grid)
    if name == "pact":
        grid = replace(grid, strict=grid.signed)
    np.testing.assert_allclose(made(jnp.asarray(X)), numpy_grid(grid, X)[1], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(made.affine.scale, grid.scale, rtol=1e-6)
    np.testing.assert_array_equal(made.affine.zero_point, grid.zero_point)
    np.testing.assert_array_equal(made(jnp.asarray(X)), made.affine(jnp.asarray(X)))
    # In float32, under jit, along channels: still the grid that `affine` says.
    last = last_quantizer(made, X.ndim)
    assert last is not None and type(last) is type(made)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED])
def test_lsq(grid, batched):
    """Esser et al. 2020, eq. 3, times 1 / sqrt(N qmax)."""
    d, dx = pulled(ranges.lsq(grid, batched))
    v = X / 0.3 if grid.signed else X / np.float32(0.11)
    low, high = (-4, 3) if grid.signed else (0, 15)
    inside = (v >= low) & (v <= high)
    each = np.where(inside, np.round(v) - v, np.where(v < low, low, high))
    g = 1 / np.sqrt((X[0].size if batched else X.size) * high)
    np.testing.assert_allclose(d.scale, (G * each).sum() * g, rtol=1e-4)
    np.testing.assert_array_equal(dx, np.where(inside, G, 0))


def test_lsq_of_a_channel_counts_its_own_values():
    scale = jnp.asarray(RNG.uniform(0.2, 0.4, 5).astype(np.float32))
    grid = Affine(scale, jnp.zeros(5), jnp.float32(3), granularity=Granularity(1))
    d, _ = pulled(ranges.lsq(grid))
    code, _, low, high = numpy_grid(grid, X)
    v = X / np.asarray(scale)[None, :, None]
    each = np.where((v >= low) & (v <= high), code - v, code)
    np.testing.assert_allclose(d.scale, (G * each).sum((0, 2)) / np.sqrt(24 * 3), rtol=1e-4)


def test_lsq_plus():
    """Bhalgat et al. 2020, eq. 5 to 7: in the offset 1 where it clips, in the scale n and p."""
    made = ranges.lsq_plus(SHIFTED, batched=True)
    d, dx = pulled(made)
    s, beta = np.float32(0.17), np.asarray(made.offset)
    v = (X - beta) / s
    inside = (v >= 0) & (v <= 15)
    each = np.where(inside, np.round(v) - v, np.where(v < 0, 0, 15))
    g = 1 / np.sqrt(X[0].size * 15)
    np.testing.assert_allclose(d.scale, (G * each).sum() * g, rtol=1e-4)
    np.testing.assert_allclose(d.offset, np.where(inside, 0, G).sum() * g, rtol=1e-4)
    np.testing.assert_array_equal(dx, np.where(inside, G, 0))


@pytest.mark.parametrize("grid", [SIGNED, UNSIGNED])
def test_tqt(grid):
    """Jain et al. 2020, eq. 6 to 8; the scale is a power of two at any threshold."""
    made = replace(ranges.tqt(grid), log2_threshold=jnp.float32(0.3))
    s = 2.0 / (4 if grid.signed else 16)
    assert float(made.affine.scale) == s
    low, high = (-4, 3) if grid.signed else (0, 15)
    v = X / s
    r = np.round(v)
    inside = (r >= low) & (r <= high)
    each = s * np.log(2) * np.where(inside, r - v, np.where(r < low, low, high))
    d, dx = pulled(made)
    np.testing.assert_allclose(made(jnp.asarray(X)), np.clip(r, low, high) * s, rtol=1e-6)
    np.testing.assert_allclose(d.log2_threshold, (G * each).sum(), rtol=1e-4)
    np.testing.assert_array_equal(dx, np.where(inside, G, 0))


def test_pact():
    """Choi et al. 2018, eq. 3: the range has a gradient where it clips, and only there."""
    d, dx = pulled(ranges.pact(UNSIGNED))
    alpha = np.float32(0.11) * 15
    np.testing.assert_allclose(d.alpha, G[alpha <= X].sum(), rtol=1e-5)
    np.testing.assert_array_equal(dx, np.where((X > 0) & (alpha > X), G, 0))
    y = 0.5 * (np.abs(X) - np.abs(X - alpha) + alpha)
    made = ranges.pact(UNSIGNED)(jnp.asarray(X))
    np.testing.assert_allclose(made, np.round(y * 15 / alpha) * alpha / 15, atol=1e-6)
    d, _ = pulled(ranges.pact(SIGNED))
    alpha = np.float32(0.3) * 3
    np.testing.assert_allclose(d.alpha, G[alpha <= X].sum() - G[-alpha >= X].sum(), rtol=1e-5)


def numeric(function, value, step=1e-3):
    """Central differences in float64 of a numpy function of one number."""
    return (function(value + step) - function(value - step)) / (2 * step)


def limits_surrogate(low, high, codes, residual, clipped, zero_residual):
    """The straight-through value: scale * (code + v - v0), rounding errors held at their values."""
    s = (high - low) / 15
    z = -low / s + zero_residual
    inside = X.astype(np.float64) + residual * s
    return (
        G * np.where(clipped < 0, (0 - z) * s, np.where(clipped > 0, (15 - z) * s, inside))
    ).sum()


def test_learned_limits():
    """Against finite differences with every rounding error held constant: what straight-through
    differentiates."""
    made = ranges.min_max(SHIFTED)
    low, high = (float(v) for v in (made.low, made.high))
    code, _, bottom, top = numpy_grid(SHIFTED, X)
    v = X.astype(np.float64) / ((high - low) / 15)
    clipped = np.where(v < bottom, -1, np.where(v > top, 1, 0))
    arguments = code, code - v, clipped, 0.0
    d, dx = pulled(made)
    for name, at in (("low", low), ("high", high)):

        def along(value, name=name):
            pair = (value, high) if name == "low" else (low, value)
            return limits_surrogate(*pair, *arguments)

        np.testing.assert_allclose(getattr(d, name), numeric(along, at), rtol=2e-3)
    np.testing.assert_array_equal(dx, np.where(clipped == 0, G, 0))


def dsq_numpy(x, low, high, a):
    """Gong et al. 2019, eq. 3 to 6, in their words: intervals of width delta from l to u."""
    delta = (high - low) / 15
    k = np.log(2 / a - 1) / delta
    i = np.clip(np.floor((x - low) / delta), 0, 14)
    m = low + (i + 0.5) * delta
    phi = np.tanh(k * (x - m)) / np.tanh(0.5 * k * delta)
    y = low + delta * (i + (phi + 1) / 2)
    return np.where(x < low, low, np.where(x > high, high, y))


def test_dsq():
    made = ranges.dsq(SHIFTED)
    low, high = (np.float64(v) for v in (made.low, made.high))
    x = X.astype(np.float64)
    np.testing.assert_allclose(made.soft(jnp.asarray(X)), dsq_numpy(x, low, high, 0.2), atol=1e-5)
    d, dx = pulled(made)
    step = 1e-4
    slope = dsq_numpy(x + step, low, high, 0.2) - dsq_numpy(x - step, low, high, 0.2)
    away = np.abs((x - low) / (high - low) * 15 % 1 - 0) > 0.01
    np.testing.assert_allclose(dx[away], (G * slope / (2 * step))[away], rtol=5e-3, atol=1e-3)
    value = lambda a: (G * dsq_numpy(x, low, high, a)).sum()  # noqa: E731
    np.testing.assert_allclose(d.softness, numeric(value, 0.2), rtol=1e-3)
    # The zero point follows the limits straight-through, which moves the interval as a whole.
    value = lambda u: (G * dsq_numpy(x, low, u, 0.2)).sum()  # noqa: E731
    np.testing.assert_allclose(d.high, numeric(value, high, 1e-5), rtol=2e-2)
    value = lambda v: (G * dsq_numpy(x, v, high, 0.2)).sum()  # noqa: E731
    np.testing.assert_allclose(d.low, numeric(value, low, 1e-5), rtol=2e-2)


def test_ewgs():
    """Lee et al. 2021, eq. 5, in x; with delta 0 it is straight-through."""
    d, dx = pulled(ranges.ewgs(SIGNED, delta=0.5))
    v = X.astype(np.float64) / np.float32(0.3)
    inside = (v >= -4) & (v <= 3)
    x_n, x_q = (v + 4) / 7, (np.round(v) + 4) / 7
    expected = np.where(inside, G * (1 + 0.5 * np.sign(G) * (x_n - x_q)), 0)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)
    plain, _ = pulled(ranges.ewgs(SIGNED, delta=0.0))
    lsq, _ = pulled(SIGNED)
    np.testing.assert_allclose(plain.scale, lsq.scale, rtol=1e-4)
    assert float(d.delta) == 0 and float(d.scale) != float(plain.scale)


def qil_numpy(x, c, d, gamma, gain, q=None):
    a, b = 0.5 / d, -0.5 * c / d + 0.5
    size = np.abs(x)
    curve = np.maximum(a * size + b, 0) ** gamma
    t = np.where(size < c - d, 0, np.where(size > c + d, 1, curve)) * np.sign(x)
    return gain * (t if q is None else np.round(t * q) / q)


def test_qil():
    """Jung et al. 2019, eq. 2 to 4; gradients are those of the transformer."""
    made = Qil(*(jnp.float32(v) for v in (0.8, 0.6, 1.3, 1.7, 3)))
    x = X.astype(np.float64)
    settings = {"c": 0.8, "d": 0.6, "gamma": 1.3}
    np.testing.assert_allclose(
        made(jnp.asarray(X)), qil_numpy(x, **settings, gain=1.7, q=3), atol=1e-5
    )
    d, dx = pulled(made)
    for name, field in (("c", "center"), ("d", "distance"), ("gamma", "gamma")):
        value = lambda v, name=name: (G * qil_numpy(x, **{**settings, name: v}, gain=1.7)).sum()  # noqa: E731
        np.testing.assert_allclose(
            getattr(d, field), numeric(value, settings[name], 1e-5), rtol=1e-2
        )
    slope = (
        qil_numpy(x + 1e-5, **settings, gain=1.7) - qil_numpy(x - 1e-5, **settings, gain=1.7)
    ) / 2e-5
    np.testing.assert_allclose(dx, G * slope, rtol=1e-2, atol=1e-3)


def test_qil_starts_on_the_strict_grid_and_its_codes_survive_freezing():
    w = jnp.asarray(X)
    start = ranges.qil(SIGNED)
    np.testing.assert_allclose(start(w), numpy_grid(replace(SIGNED, strict=True), X)[1], atol=1e-6)
    made = replace(start, gamma=jnp.float32(1.7), center=jnp.float32(0.6))
    graph = Graph(name="g", nodes=(), inputs=(), outputs=("w",), params=("w",))
    params, encodings = freeze(graph, {"w": X}, {"w": made})
    kept = encodings["w"].dequantize(encodings["w"].quantize(params["w"]))
    np.testing.assert_allclose(kept, made(w), atol=1e-6)
    with pytest.raises(ConfigError, match="QIL learns the interval of weights"):
        ranges.qil(UNSIGNED)


def test_stochastic_rounding_is_right_on_average():
    """The mean of n draws lies within a few standard errors, s / (2 sqrt(n)) at most, of x."""
    x = jnp.linspace(-0.8, 0.8, 33)
    keys = jax.random.split(jax.random.key(0), 2000)
    y = jax.vmap(lambda key: Stochastic(SIGNED, key)(x))(keys)
    assert float(jnp.max(jnp.abs(y.mean(0) - x))) < 5 * 0.15 / np.sqrt(2000)
    ratio = np.asarray(y, np.float64) / np.float32(0.3)
    np.testing.assert_allclose(ratio, np.round(ratio), atol=1e-5)


def test_parametrize_and_settle():
    plan = Plan(
        {
            "w": Spec(Integer(3, signed=True), symmetric=True, role="weight"),
            "x": Spec(Integer(4)),
        },
        biases={"b": ("x", "w")},
    )
    theta = {"w": SIGNED, "x": SHIFTED}
    made = parametrize(theta, plan, ranges.lsq)
    assert made["x"].batched and not made["w"].batched
    mixed = parametrize(theta, plan, ranges.min_max, role="activation")
    assert isinstance(mixed["w"], Affine) and isinstance(mixed["x"], MinMax)
    for value in (made, mixed):
        back = settle(value)
        assert all(isinstance(q, Affine) for q in back.values())
        np.testing.assert_allclose(back["x"].scale, SHIFTED.scale, rtol=1e-6)
        # A bias follows the grids whatever they are learned by.
        bias = bind(value, plan)["b"]
        np.testing.assert_allclose(bias.scale, 0.3 * 0.17, rtol=1e-6)
    with pytest.raises(ConfigError, match="tensor 'x': TQT has no zero point"):
        parametrize(theta, plan, ranges.tqt)
    odd = replace(SHIFTED, rounding="half_away")
    with pytest.raises(ConfigError, match="tensor 'x': its grid rounds or stands otherwise"):
        parametrize({"w": SIGNED, "x": odd}, plan, ranges.lsq)
    with pytest.raises(ConfigError, match="no weight on an integer grid"):
        parametrize({"x": SHIFTED}, plan, ranges.lsq, role="weight")


KINDS = (Dsq, Ewgs, Lsq, LsqPlus, MinMax, Pact, Qil, Tqt)


def test_every_trained_leaf_has_a_known_name():
    """What is a range's leaf is known by its name: optimizers and masks go by it."""
    constants = {"zero_point", "bits", "delta"}
    for kind in KINDS:
        leaves = {
            f for f, d in kind.__dataclass_fields__.items() if d.metadata.get("pytree_node", True)
        }
        assert leaves - constants <= ranges.RANGE_FIELDS, kind
