"""Freezing: the returned params, rounded to nearest, are exactly what was learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.errors import ConfigError, DataError, UnsupportedError
from jqnt.formats import BF16, PER_TENSOR, Granularity, Integer
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.observers import affine_of_range
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.quantizers import Affine, Cast, Mixture, SoftRound

RNG = np.random.default_rng(0)
GRAPH, PARAMS, _ = import_onnx(
    built(
        [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("MatMul", "r v", "y")],
        {"x": ["N", 3, 6, 6]},
        ["y"],
        {"w": RNG.normal(size=(4, 3, 3, 3)), "b": RNG.normal(size=4), "v": RNG.normal(size=(4, 5))},
    )
)
X = {"x": RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)}


def soft(w, bits, granularity, symmetric, seed=0) -> SoftRound:
    groups = granularity.groups(jnp.asarray(w))
    fmt = Integer(bits, signed=symmetric)
    affine = affine_of_range(groups.min(-1) / 2, groups.max(-1) / 2, fmt, symmetric, granularity)
    logit = jax.random.normal(jax.random.key(seed), w.shape)
    return SoftRound(
        affine.scale, affine.zero_point, affine.bits, logit, affine.signed, fmt.strict, granularity
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from([PER_TENSOR, Granularity(0), Granularity(-3), Granularity(1, 2)]),
    st.booleans(),
    st.integers(0, 999),
)
def test_rounding_the_params_to_nearest_gives_the_learned_codes(bits, granularity, symmetric, seed):
    quantizer = soft(PARAMS["w"], bits, granularity, symmetric, seed)
    params, encodings = freeze(GRAPH, PARAMS, {"w": quantizer})
    encoding = encodings["w"]
    # By the definition, in float64 but for the division, which float32 does as IEEE says.
    w, scale = PARAMS["w"], np.asarray(quantizer.granularity.expand(quantizer.scale, (4, 3, 3, 3)))
    zero = np.asarray(quantizer.granularity.expand(quantizer.zero_point, (4, 3, 3, 3)))
    up = np.asarray(quantizer.logit) >= 0
    codes = np.clip(np.floor(w / scale) + up + zero, *encoding.format.limits)
    if encoding.format.even:
        codes = np.where(up, 1, -1)
    np.testing.assert_array_equal(encoding.quantize(params["w"]), codes)
    assert params["w"].dtype == np.float32
    np.testing.assert_array_equal(params["b"], PARAMS["b"])


def test_the_frozen_network_is_the_learned_one():
    laid = plan(GRAPH)
    theta = calibrate(lower(GRAPH), PARAMS, laid, [X])
    theta["w"] = soft(PARAMS["w"], 4, Granularity(0), True)
    qparams = bind(theta, laid)
    params, encodings = freeze(GRAPH, PARAMS, qparams)
    hard = dict(qparams) | {"w": theta["w"].affine, "b": bind(theta, laid)["b"]}
    rounded = PARAMS | {"w": theta["w"].harden(jnp.asarray(PARAMS["w"]))}
    expected = lower(GRAPH)(rounded, hard, X)["y"]
    np.testing.assert_array_equal(lower(GRAPH)(params, hard, X)["y"], expected)
    assert set(encodings) == {"x", "w", "b", "r", "v", "y"}
    assert encodings["b"].format == Integer(32, signed=True)
    np.testing.assert_array_equal(encodings["b"].scale, encodings["x"].scale * encodings["w"].scale)
    assert encodings["v"].granularity == Granularity(1)
    for name in ("x", "r", "y"):
        np.testing.assert_array_equal(
            encodings[name].dequantize(encodings[name].quantize(PARAMS["w"])),
            qparams[name](jnp.asarray(PARAMS["w"])),
        )


def test_a_mixture_becomes_its_most_probable_branch():
    branches = (soft(PARAMS["w"], 4, Granularity(0), True), Cast(BF16))
    _, encodings = freeze(GRAPH, PARAMS, {"w": Mixture(jnp.asarray([0.3, 0.7]), branches)})
    assert encodings["w"].format == BF16 and encodings["w"].scale is None
    params, encodings = freeze(GRAPH, PARAMS, {"w": Mixture(jnp.asarray([0.7, 0.3]), branches)})
    assert encodings["w"].format.bits == 4
    assert np.unique(params["w"][0]).size <= 16


def affine(scale=0.1, zero_point=0.0, bits=8.0) -> Affine:
    return Affine(jnp.asarray(scale), jnp.asarray(zero_point), jnp.asarray(bits))


WRONG = [
    ({"q": affine()}, ConfigError, "no tensor 'q'"),
    ({"w": affine(scale=-0.1)}, DataError, "'w': a scale must be positive"),
    ({"w": affine(scale=np.nan)}, DataError, "'w': a scale must be positive"),
    ({"w": affine(zero_point=300.0)}, DataError, "'w' has a zero point outside int8"),
    (
        {"w": affine(scale=[0.1, 0.2], zero_point=[0.0, 0.0], bits=[4.0, 8.0])},
        DataError,
        "'w' has channels of .4.0, 8.0. bits",
    ),
    ({"c": soft(PARAMS["w"], 4, PER_TENSOR, True)}, UnsupportedError, "'c' was learned, but"),
    ({"w": lambda x: x}, UnsupportedError, "'w', function, has no encoding"),
]


@pytest.mark.parametrize(("qparams", "kind", "match"), WRONG)
def test_what_cannot_be_frozen(qparams, kind, match):
    with pytest.raises(kind, match=match):
        freeze(GRAPH, PARAMS, qparams)


def test_real_valued_bits_and_zero_points_are_rounded():
    _, encodings = freeze(GRAPH, PARAMS, {"x": affine(bits=3.6, zero_point=1.4)})
    assert encodings["x"].format == Integer(4, signed=True)
    assert int(encodings["x"].zero_point) == 1
