"""Microscaled blocks and scaled minifloats against numpy and ml_dtypes, by the specification."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError
from jqnt.formats import Integer, Microscaling, Minifloat, format_named
from jqnt.freeze import freeze
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.observers import affine_of_range, exact_mse, minmax, mse
from jqnt.quantizers import Cast, Microscaled
from jqnt.thaw import thaw

RNG = np.random.default_rng(0)
RUN = jax.jit(lambda quantizer, x: quantizer(x))
X = RNG.normal(size=(5, 70)).astype(np.float32)
X *= np.float32(2.0) ** RNG.integers(-8, 9, (5, 70)).astype(np.float32)
X[1] = 0
ELEMENT = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4, 28),
    "mxfp4_e2m1": (ml_dtypes.float4_e2m1fn, 2, 6),
}
"""Element type, emax and largest number: OCP MX 1.0, tables 1 to 5."""


def by_blocks(x, size, quantize):
    """`quantize(block)` on float64 blocks along the last axis."""
    out = np.zeros_like(x)
    for row, values in enumerate(x):
        for start in range(0, len(values), size):
            block = values[start : start + size].astype(np.float64)
            out[row, start : start + size] = quantize(block)
    return out


@pytest.mark.parametrize("name", ELEMENT)
def test_mx_floats_follow_the_specification(name):
    dtype, emax, top = ELEMENT[name]

    def quantize(block):
        largest = np.abs(block).max()
        shared = 2.0 ** (np.floor(np.log2(largest)) - emax) if largest else 1.0
        return np.clip(block / shared, -top, top).astype(dtype).astype(np.float64) * shared

    fmt = format_named(name)
    assert fmt.name == name and fmt.block == 32
    found = RUN(Microscaled(jnp.float32(1), fmt, -1), jnp.asarray(X))
    np.testing.assert_array_equal(np.asarray(found), by_blocks(X, 32, quantize))


def test_mxint8_has_six_bits_behind_the_point():
    def quantize(block):
        largest = np.abs(block).max()
        shared = 2.0 ** np.floor(np.log2(largest)) if largest else 1.0
        return np.clip(np.rint(block / shared * 64), -128, 127) / 64 * shared

    found = Microscaled(jnp.float32(1), format_named("mxint8"), 0)(jnp.asarray(X.T))
    np.testing.assert_array_equal(np.asarray(found).T, by_blocks(X, 32, quantize))


def test_nvfp4_has_a_scale_for_the_tensor_and_an_e4m3_for_each_16():
    tensor = np.float32(np.abs(X).max() / np.float32(6 * 448))

    def quantize(block):
        ratio = np.float32(np.abs(block).max()) / (np.float32(6) * tensor)
        scale = np.float32(ratio.astype(ml_dtypes.float8_e4m3fn)) * tensor
        if not scale:
            return 0 * block
        v = np.clip(block.astype(np.float32) / scale, -6, 6)
        return v.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale

    fmt = format_named("nvfp4")
    made = affine_of_range(jnp.float32(X.min()), jnp.float32(X.max()), fmt, True)
    np.testing.assert_allclose(made.scale, tensor, rtol=1e-6)
    found = Microscaled(jnp.float32(tensor), fmt, -1)(jnp.asarray(X))
    np.testing.assert_array_equal(np.asarray(found), by_blocks(X, 16, quantize))


def test_gradients_pass_inside_the_elements_range():
    fmt = format_named("mxfp4_e2m1")
    x = jnp.asarray([[1.0, 7.9, -0.1, 3.0]])
    grad = jax.grad(lambda x: Microscaled(jnp.float32(1), fmt, -1)(x).sum())(x)
    # The shared scale is 2^(2 - 2) = 1: 7.9 saturates at 6.
    np.testing.assert_array_equal(grad, [[1, 0, 1, 1]])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float4_e2m1fn"])
@pytest.mark.parametrize("granularity", [Granularity(), Granularity(0), Granularity(1, 16)])
def test_a_narrow_float_reaches_from_its_scale(name, granularity):
    fmt = format_named(name)
    dtype = getattr(ml_dtypes, name)
    state = minmax().update(minmax().init(X, granularity), jnp.asarray(X))
    found = minmax().finish(state, fmt, True)
    assert isinstance(found, Cast)
    top = float(ml_dtypes.finfo(dtype).max)
    largest = np.abs(np.asarray(granularity.groups(jnp.asarray(X)))).max(-1)
    scale = np.where(largest > 0, largest / np.float32(top), 1).astype(np.float32)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    spread = np.asarray(granularity.expand(jnp.asarray(found.scale), X.shape))
    expected = np.clip(X / spread, -top, top).astype(dtype).astype(np.float32) * spread
    np.testing.assert_array_equal(np.asarray(RUN(found, jnp.asarray(X))), expected)


def test_the_best_scale_of_a_narrow_float_beats_the_whole_range():
    x = jnp.asarray(RNG.standard_t(3, size=(4, 4096)), jnp.float32)
    fmt = format_named("float4_e2m1fn")
    errors = {}
    for name, observer in {"range": minmax(), "mse": mse(), "exact": exact_mse()}.items():
        found = observer.finish(observer.update(observer.init(x), x), fmt, True)
        errors[name] = float(((found(x) - x) ** 2).sum())
    assert errors["exact"] <= 1.001 * errors["mse"] < 0.9 * errors["range"]


def test_the_scale_of_a_float_has_the_gradient_of_a_learned_step():
    fmt = format_named("float4_e2m1fn")
    x = np.asarray([0.3, -1.7, 2.2, 30.0, -30.0])

    def y(scale):
        return Cast(fmt, scale)(jnp.asarray(x, jnp.float32)).sum()

    v = x / 0.9
    code = np.clip(v, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    expected = np.where(np.abs(v) <= 6, code - v, code).sum()
    np.testing.assert_allclose(jax.grad(y)(jnp.float32(0.9)), expected, rtol=1e-5)


def test_frozen_floats_come_back_exactly(tmp_path):
    graph = Graph("g", nodes=(), inputs=("a", "b", "c"), outputs=("a",), params=())
    qparams = {
        "a": Microscaled(jnp.float32(0.25), format_named("nvfp4"), 1),
        "b": Microscaled(jnp.float32(1), format_named("mxint8"), 0),
        "c": Cast(format_named("float8_e4m3fn"), jnp.asarray([0.5, 2.0]), Granularity(0)),
    }
    _, encodings = freeze(graph, {}, qparams)
    encodings.save(tmp_path / "e.json")
    again = thaw(Encodings.load(tmp_path / "e.json"))
    x = jnp.asarray(X[:2])
    for name, quantizer in qparams.items():
        np.testing.assert_array_equal(np.asarray(again[name](x)), np.asarray(quantizer(x)))


def test_any_minifloat_has_a_name():
    assert format_named("float7_e3m3") == Minifloat(3, 3)
    assert format_named("float5_e2m2fn") == Minifloat(2, 2, ieee=False)
    with pytest.raises(ConfigError, match="has 7 bits"):
        format_named("float8_e3m3")
    with pytest.raises(ConfigError, match="signed elements"):
        Microscaling(Integer(8))
