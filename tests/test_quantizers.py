"""Quantizers against numpy, ml_dtypes and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.formats import FP16, Granularity, Minifloat, format_named, integer_limits, storage_dtype
from jqnt.quantizers import Affine, Cast, Mixture, Select, SoftRound


def affine(scale, zero_point=0.0, bits=8, **static):
    leaves = (jnp.asarray(v, jnp.float32) for v in (scale, zero_point, bits))
    return Affine(*leaves, **static)


X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 3, 3)), jnp.float32)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_per_channel_equals_numpy(axis, bits):
    n = X.shape[axis]
    scale = np.linspace(0.05, 0.4, n, dtype=np.float32)
    q = affine(scale, np.zeros(n), bits, granularity=Granularity(axis))
    shape = [1] * 4
    shape[axis] = n
    s = scale.reshape(shape)
    expected = np.clip(np.rint(np.asarray(X) / s), *integer_limits(bits, True)) * s
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda q, x: q(x))(q, X)), expected)
    np.testing.assert_array_equal(np.asarray(q.codes(X)) * s, expected)


def test_blocks_equal_numpy():
    scale = np.random.default_rng(1).uniform(0.1, 0.3, (6, 2, 3, 3)).astype(np.float32)
    q = affine(scale, np.zeros_like(scale), 4, granularity=Granularity(1, block=3))
    s = np.repeat(scale, 3, axis=1)[:, :5]
    expected = np.clip(np.rint(np.asarray(X) / s), -8, 7) * s
    np.testing.assert_array_equal(np.asarray(q(X)), expected)


def test_another_width_is_no_other_program():
    traces = []

    @jax.jit
    def run(q, x):
        traces.append(1)
        return q(x)

    for bits in (2, 3, 8, 16):
        run(affine(0.1, bits=bits), X)
    assert len(traces) == 1


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(0.0078125, 4, width=32),
    zero=st.integers(-8, 7),
    bits=st.integers(4, 8),
)
def test_quantizing_twice_is_quantizing_once(scale, zero, bits):
    q = affine(scale, zero, bits)
    y = q(X)
    np.testing.assert_array_equal(np.asarray(q(y)), np.asarray(y))


def test_one_bit_is_plus_or_minus_one():
    q = affine(0.5, bits=1, strict=True)
    assert set(np.unique(np.asarray(q(X)))) == {-0.5, 0.5}


@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_soft_rounding_starts_at_the_weight_and_ends_on_the_grid(zero):
    scale = jnp.float32(0.125)
    v = X / scale
    fraction = v - jnp.floor(v)
    logit = -jnp.log(1.2 / (fraction + 0.1) - 1)
    q = SoftRound(scale, jnp.float32(zero), jnp.float32(8), logit)
    np.testing.assert_allclose(q(X), X, atol=2e-6)
    hard = np.asarray(q.harden(X))
    codes = hard / 0.125
    np.testing.assert_array_equal(codes, np.rint(codes))
    np.testing.assert_array_equal(codes, np.floor(np.asarray(v)) + (np.asarray(logit) >= 0))
    # the law of freeze: nearest rounding of the result gives the same codes again
    np.testing.assert_array_equal(np.asarray(q.affine(jnp.asarray(hard))), hard)


@pytest.mark.parametrize(
    "name",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float4_e2m1fn"],
)
def test_a_cast_equals_the_storage_type(name):
    fmt = format_named(name)
    assert isinstance(fmt, Minifloat)
    x = np.random.default_rng(3).normal(size=20000).astype(np.float32)
    x = x * np.float32(10.0) ** np.random.default_rng(4).integers(-6, 6, x.size).astype(np.float32)
    expected = np.clip(x, -fmt.max, fmt.max).astype(storage_dtype(fmt)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(jax.jit(Cast(fmt))(jnp.asarray(x))), expected)


def test_a_cast_passes_gradients_inside_only():
    grad = jax.grad(lambda x: Cast(format_named("float4_e2m1fn"))(x).sum())(
        jnp.asarray([0.3, -5.0, 7.0])
    )
    np.testing.assert_array_equal(grad, [1, 1, 0])


def test_a_mixture_is_exact_at_every_vertex_and_linear_between():
    branches = (affine(0.5, bits=2), affine(0.1, bits=4), Cast(format_named("float16")))
    for k, branch in enumerate(branches):
        one_hot = jnp.zeros(3).at[k].set(1)
        np.testing.assert_array_equal(
            np.asarray(Mixture(one_hot, branches)(X)), np.asarray(branch(X))
        )
        assert Mixture(one_hot, branches).chosen is branch
    p = jnp.asarray([0.2, 0.3, 0.5])
    expected = sum(
        float(w) * np.asarray(b(X), np.float64) for w, b in zip(p, branches, strict=True)
    )
    np.testing.assert_allclose(Mixture(p, branches)(X), expected, rtol=1e-5, atol=1e-6)


def test_a_selection_is_the_branch_of_a_traced_index():
    branches = (affine(0.3, 0.0, 4), Cast(FP16), affine(0.02, 1.0, 8), affine(0.01, 0.0, 8))
    traces = []

    @jax.jit
    def run(index, branches):
        traces.append(1)
        return Select(index, branches)(X)

    for k, branch in enumerate(branches):
        np.testing.assert_array_equal(run(k, branches), branch(X))
    np.testing.assert_array_equal(run(-1, branches), X)
    assert len(traces) == 1


def test_every_leaf_of_every_quantizer_has_a_finite_gradient():
    logit = jnp.zeros_like(X)
    soft = SoftRound(jnp.float32(0.1), jnp.float32(0), jnp.float32(3), logit)
    mixture = Mixture(jnp.asarray([0.5, 0.5]), (affine(0.1, 1.0, 3), soft))
    grads = jax.grad(lambda q: (q(X) ** 2).sum())(mixture)
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 8
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)
