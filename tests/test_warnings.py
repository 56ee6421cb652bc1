"""What lies outside a calibrated range, counted by numpy; importance, frozen ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError, DataError
from jqnt.formats import Granularity, Integer
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.learn.output_error import least_output_error
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.warnings import outside_range, too_few
from jqnt.observers import deviations, moving_average, sqnr
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.quantizers import Affine, Cast
from jqnt.rules import Rule, scheme

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 4)).astype(np.float32)
GRAPH, PARAMS, _ = import_onnx(
    built(
        [node("Gemm", "x w", "a", transB=1), node("Relu", "a", "y")],
        {"x": ["N", 4]}, ["y"], {"w": W},
    )
)  # fmt: skip
APPLY = lower(GRAPH)
BATCHES = [{"x": RNG.normal(size=(16, 4)).astype(np.float32) * k} for k in (1, 2, 4)]


def test_values_outside_are_counted_and_the_worst_comes_first():
    laid = plan(GRAPH)
    qparams = bind(calibrate(APPLY, PARAMS, laid, BATCHES[:1]), laid)
    assert not outside_range(APPLY, PARAMS, qparams, BATCHES[:1])
    found = outside_range(APPLY, PARAMS, qparams, BATCHES)
    assert [row.tensor for row in found] == ["x", "y"] or found[0].share >= found[1].share
    x = np.concatenate([b["x"] for b in BATCHES]).astype(np.float64)
    for name, values in {"x": x, "y": np.maximum(x @ W.T.astype(np.float64), 0)}.items():
        row = next(r for r in found if r.tensor == name)
        s, z = float(qparams[name].scale), float(qparams[name].zero_point)
        outside = (values < (0 - z - 0.5) * s) | (values > (255 - z + 0.5) * s)
        assert row.share == pytest.approx(outside.mean(), abs=1e-6)
        np.testing.assert_allclose(row.seen, [values.min(), values.max()], rtol=1e-5)
        assert f"{name!r} lies outside" in str(row)


def test_fewer_than_200_samples():
    assert too_few(200) is None and "199 calibration samples" in (too_few(199) or "")


@pytest.mark.parametrize("observer", [deviations(2.0), sqnr()])
def test_importance_counts_a_batch_as_often_as_it_says(observer):
    laid = plan(GRAPH)
    weighted = calibrate(
        APPLY, PARAMS, laid, BATCHES, observer=observer, importance=[3, 0, 1]
    )["x"]  # fmt: skip
    repeated = [BATCHES[0]] * 3 + [BATCHES[2]]
    plain = calibrate(APPLY, PARAMS, laid, repeated, observer=observer)["x"]
    np.testing.assert_allclose(weighted.scale, plain.scale, rtol=1e-5)
    np.testing.assert_array_equal(weighted.zero_point, plain.zero_point)


@pytest.mark.parametrize(
    ("importance", "match"),
    [([1, 1], "2 weights"), ([1, -1, 1], "finite numbers from 0"), ([0, 0, 0], "above 0")],
)
def test_importance_that_fits_no_batches(importance, match):
    with pytest.raises(DataError, match=match):
        calibrate(APPLY, PARAMS, plan(GRAPH), BATCHES, importance=importance)


def test_frozen_ranges_stay_and_the_others_are_found():
    laid = plan(GRAPH)
    held = Affine(jnp.float32(0.5), jnp.float32(7), jnp.float32(8), signed=False)
    theta = calibrate(APPLY, PARAMS, laid, BATCHES, frozen={"x": held})
    free = calibrate(APPLY, PARAMS, laid, BATCHES)
    assert theta["x"] is held and float(theta["y"].scale) == float(free["y"].scale)
    with pytest.raises(ConfigError, match=r"'xx' has no place.*did you mean 'x'"):
        calibrate(APPLY, PARAMS, laid, BATCHES, frozen={"xx": held})
    with pytest.raises(ConfigError, match="'w' is not int8"):
        calibrate(APPLY, PARAMS, laid, BATCHES, frozen={"w": held})


def test_a_power_of_two_scale_covers_what_was_seen():
    rules = (Rule(scale_format="power_of_two"),)
    theta = calibrate(APPLY, PARAMS, plan(GRAPH, rules), BATCHES, observer=moving_average(0.0))
    x, scale = BATCHES[-1]["x"], float(theta["x"].scale)
    assert np.log2(scale) == int(np.log2(scale))
    zero = float(theta["x"].zero_point)
    assert (0 - zero) * scale <= x.min() + scale / 2 and (255 - zero) * scale >= x.max() - scale / 2
    assert scale < 2 * (x.max() - x.min()) / 255 * 1.0001


@pytest.mark.parametrize("granularity", ["tensor", "channel", 2])
def test_the_least_output_error_is_that_of_the_best_candidate(granularity):
    rules = (Rule(role="weight", format="int3", granularity=granularity), *scheme("int3"))
    laid = plan(GRAPH, rules[:1])
    theta = calibrate(APPLY, PARAMS, laid, BATCHES)
    method = least_output_error(10, 0.1)
    done = reconstruct(GRAPH, PARAMS, theta, laid, BATCHES, method, key=jax.random.key(0))
    x = np.concatenate([b["x"] for b in BATCHES])
    lossy = np.asarray(theta["x"](jnp.asarray(x)), np.float64)
    target = x.astype(np.float64) @ W.T.astype(np.float64)
    start = np.asarray(theta["w"].granularity.expand(theta["w"].scale, W.shape), np.float64)

    def errors(factor):
        q = np.clip(np.rint(W / (start * factor)), -4, 3) * start * factor
        return ((target - lossy @ q.T) ** 2).sum(0)

    grid = np.stack([errors(f) for f in np.linspace(0.1, 1, 10)])
    best = grid.sum(1).min() if granularity == "tensor" else grid.min(0).sum()
    found = np.asarray(done.theta["w"](jnp.asarray(W)), np.float64)
    np.testing.assert_allclose(((target - lossy @ found.T) ** 2).sum(), best, rtol=1e-3)
    assert best < grid[-1].sum() or granularity == "tensor"


EXAMPLES = [
    (Rule(format="mxfp8_e4m3"), {"x": Granularity(1, 32), "w": Granularity(1, 32)}),
    (Rule(role="weight", format="nvfp4"), {"w": Granularity(1, 16)}),
    (Rule(role="weight", format="float8_e4m3fn"), {"w": Granularity(0)}),
    (Rule(role="weight", format="int2_shifted"), {"w": Granularity(0)}),
    (
        Rule(role="weight", format="int4", granularity=Granularity((0, 1), (2, 2))),
        {"w": Granularity((0, 1), (2, 2))},
    ),
    (
        Rule(role="weight", format="int4", granularity=2, scale_format="int4"),
        {"w": Granularity(1, 2)},
    ),
    (Rule(role="weight", format=Integer(24, signed=True)), {"w": Granularity(0)}),
]


def most(quantizer, v):
    """The most that rounding moves values of magnitude `v`, by the format's definition: half the
    step where they lie, or what is cut off beyond the largest number."""
    if isinstance(quantizer, Affine):
        s = np.asarray(quantizer.granularity.expand(quantizer.on_grid().scale, v.shape), np.float64)
        codes = 2 ** float(quantizer.bits) - 1
        return np.maximum(s / 2, v - (codes // 2 if quantizer.signed else codes) * s)
    if isinstance(quantizer, Cast):
        element, s = quantizer.format, np.asarray(quantizer.scale, np.float64)
        s = s[:, None] if s.ndim else s
        return np.maximum(half_step(element, v, s), v - element.max * s)
    element, size = quantizer.format.element, quantizer.format.block
    top = np.repeat([v[:, i : i + size].max(1) for i in range(0, v.shape[1], size)], size, 0)
    top = top[: v.shape[1]].T
    if quantizer.format.scale is None:
        # A power of two, of the binade that it makes the last: the end of that may be missing.
        s = 2.0 ** (np.floor(np.log2(top + 1e-30)) - np.floor(np.log2(element.max)))
        return np.maximum(half_step(element, v, s), v - element.max * s)
    # e4m3 has moved the scale, which would be top / element.max, by up to a 16th.
    s = top / element.max * np.asarray([[[15]], [[17]]]) / 16
    return np.maximum(half_step(element, v, s[1]), v - element.max * s[0])


def half_step(element, v, s):
    """Half the distance of the numbers next to v / s, in v's units; subnormals below 1 - bias."""
    exponent = np.maximum(np.floor(np.log2(v / s + 1e-30)), 1 - element.bias)
    return s * 2.0 ** (exponent - element.mantissa - 1)


@pytest.mark.parametrize(("rule", "granularities"), EXAMPLES)
def test_every_format_is_one_rule_and_runs(rule, granularities):
    laid = plan(GRAPH, (rule,), target="simulation")
    for name, granularity in granularities.items():
        assert laid.specs[name].granularity == granularity
    theta = calibrate(APPLY, PARAMS, laid, BATCHES)
    qparams = bind(theta, laid)
    before = APPLY(PARAMS, {n: q for n, q in qparams.items() if n != "y"}, BATCHES[0])["y"]
    moved = {}
    for name, value in {"x": BATCHES[0]["x"], "w": W, "y": np.asarray(before)}.items():
        error = np.abs(np.asarray(qparams[name](jnp.asarray(value)), np.float64) - value)
        moved[name] = most(theta[name], np.abs(value.astype(np.float64)))
        assert (error <= 1.00001 * moved[name] + 1e-6).all()
        assert (error > 0.5 * moved[name]).any()
    x, w = (np.abs(v.astype(np.float64)) for v in (BATCHES[0]["x"], W))
    exact = np.maximum(BATCHES[0]["x"].astype(np.float64) @ W.T.astype(np.float64), 0)
    reach = x @ moved["w"].T + moved["x"] @ (w + moved["w"]).T + moved["y"] + 1e-5
    found = np.asarray(APPLY(PARAMS, qparams, BATCHES[0])["y"])
    assert (np.abs(found - exact) <= reach).all()
    grads = jax.grad(lambda p: APPLY(p, bind(theta, laid), BATCHES[0])["y"].sum())(PARAMS)
    assert np.isfinite(np.asarray(grads["w"])).all() and np.asarray(grads["w"]).any()


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Rule(role="weight", format="mxint8", granularity=16), "blocks of 32"),
        (Rule(role="weight", format="int4", scale_format="int4"), "in blocks"),
        (Rule(role="weight", format="nvfp4", scale_format="power_of_two"), "lie on no grid"),
    ],
)
def test_contradicting_rules(rule, match):
    with pytest.raises(ConfigError, match=match):
        plan(GRAPH, (rule,), target="simulation")
