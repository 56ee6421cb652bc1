"""Elementwise operators: numpy and jax alike, opsets, exact integers, gradients at the edges."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_node import floats, model, run_eagerly
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from jqnt.errors import JqntError
from jqnt.graph.ir import Node
from jqnt.ops.registry import find


def call(op, arrays, since=21, domain="", outputs=("y",), **attrs):
    node = Node(op, "n", (), outputs, attrs, domain, since)
    return find(node).function(node, *arrays)


UNARY = {
    "Abs": {}, "Neg": {}, "Exp": {}, "Sin": {}, "Cos": {}, "Tanh": {}, "Erf": {}, "Round": {},
    "Floor": {}, "Ceil": {}, "Sign": {}, "Relu": {}, "Sigmoid": {}, "Softplus": {}, "Softsign": {},
    "Mish": {}, "HardSwish": {}, "Gelu": {}, "IsNaN": {}, "IsInf": {}, "Reciprocal": {},
    "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7}, "Selu": {}, "Celu": {"alpha": 1.5},
    "HardSigmoid": {"alpha": 0.3}, "ThresholdedRelu": {"alpha": 0.4}, "Shrink": {"bias": 0.2},
    "Softmax": {}, "LogSoftmax": {"axis": 0}, "Hardmax": {},
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_static_and_traced_values_give_the_same(op, dtype):
    x = np.linspace(-3, 3, 24).reshape(4, 6).astype(dtype)
    static = call(op, (x,), **UNARY[op])
    traced = jax.jit(lambda x: call(op, (x,), **UNARY[op]))(x)
    assert isinstance(static, np.ndarray) and not isinstance(traced, np.ndarray)
    assert static.dtype == traced.dtype and static.shape == traced.shape
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        static.astype(np.float64), np.asarray(traced, np.float64), rtol=6 * eps, atol=2 * eps
    )


BINARY = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "GreaterOrEqual")


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.float32])
@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((), (2, 3)), ((2, 1, 4), (5, 1))])
def test_broadcasting_as_in_the_reference(op, dtype, shapes):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(1, 100, s).astype(dtype) for s in shapes)
    if dtype != np.uint8:
        x = np.asarray(x * rng.choice([-1, 1], x.shape)).astype(dtype)
    since = 28 if op == "Mod" else 21
    attrs = {"fmod": 1} if op == "Mod" and dtype == np.float32 else {}
    kind = TensorProto.FLOAT
    proto = model(op, {"x": x, "y": y}, [("z", kind)], since, **attrs)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x, "y": y})
    for found in (call(op, (x, y), since, **attrs), call(op, (jnp.asarray(x), y), since, **attrs)):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@given(st.integers(-128, 127), st.integers(-128, 127).filter(bool))
@settings(max_examples=60, deadline=None)
def test_integers_are_divided_towards_zero(a, b):
    if (a, b) == (-128, -1):
        return
    x, y = np.asarray([a], np.int8), np.asarray([b], np.int8)
    wanted = int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)
    assert call("Div", (x, y))[0] == wanted
    assert call("Div", (jnp.asarray(x), y))[0] == wanted


def test_until_opset_6_the_second_operand_is_placed_by_an_axis():
    x, y = np.ones((2, 3, 4), np.float32), np.arange(3, dtype=np.float32)
    for op, function in {
        "Add": np.add,
        "Mul": np.multiply,
        "Div": np.divide,
        "Pow": np.power,
    }.items():
        found = call(op, (x + 1, y + 1), since=6, broadcast=1, axis=1)
        np.testing.assert_allclose(found, function(x + 1, y[:, None] + 1))
    slope = call("PRelu", (-jnp.asarray(x), y), since=6)
    np.testing.assert_allclose(slope, -x * y[:, None])


def test_bounds_of_a_clip_are_attributes_then_inputs():
    x = np.linspace(-2, 8, 11, dtype=np.float32)
    wanted = np.clip(x, 0, 6)
    six = np.asarray(6, np.float32)
    np.testing.assert_array_equal(call("Clip", (x,), since=6, min=0.0, max=6.0), wanted)
    np.testing.assert_array_equal(call("Clip", (jnp.asarray(x), np.zeros((), "f4"), six)), wanted)
    np.testing.assert_array_equal(call("Clip", (x, None, six)), np.minimum(x, 6))
    slope = jax.vmap(jax.grad(lambda v: call("Clip", (v, np.zeros((), "f4"), six))))(jnp.asarray(x))
    np.testing.assert_array_equal(slope, (x > 0) & (x < 6))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, 1.7])
def test_powers_with_a_known_exponent_have_derivatives_at_zero(exponent):
    y = np.asarray(exponent, np.float32)
    x = jnp.asarray([0.5, 2.0], jnp.float32)
    np.testing.assert_allclose(call("Pow", (x, y)), np.power(x, y), rtol=1e-6)
    if exponent > 1:
        assert jax.grad(lambda v: call("Pow", (v, y)))(jnp.float32(0)) == 0


@pytest.mark.parametrize("op", ["Elu", "Selu", "Celu", "Softplus", "Mish", "Relu", "HardSwish"])
def test_derivatives_stay_finite_far_from_zero(op):
    slope = jax.vmap(jax.grad(lambda v: call(op, (v,))))(jnp.asarray([-200.0, 0.0, 200.0]))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_shifts_beyond_the_width(direction, dtype):
    x = np.asarray([-5 if np.dtype(dtype).kind == "i" else 5, 7, 100], dtype)
    shift = np.asarray([1, 40, 2], dtype)
    proto = model("BitShift", {"x": x, "s": shift}, [("y", 1)], 28, direction=direction)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x, "s": shift})
    for arrays in ((x, shift), (jnp.asarray(x), jnp.asarray(shift))):
        np.testing.assert_array_equal(call("BitShift", arrays, 28, direction=direction), wanted)


def test_softmax_took_all_later_axes_together_before_opset_13():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    early = call("Softmax", (x,), since=11)
    np.testing.assert_allclose(early.reshape(2, -1).sum(1), 1, rtol=1e-6)
    late = call("Softmax", (jnp.asarray(x),), since=13)
    np.testing.assert_allclose(late.sum(-1), np.ones((2, 3)), rtol=1e-6)
    one = call("Hardmax", (x,), since=11)
    np.testing.assert_array_equal(one.reshape(2, -1).argmax(1), x.reshape(2, -1).argmax(1))


def test_dropout_is_the_identity_and_refuses_to_train():
    x = np.ones((2, 3), np.float32)
    y, mask = call("Dropout", (x,), outputs=("y", "m"))
    assert y is x and mask.dtype == bool and mask.all()
    half, train = np.asarray(0.5, np.float32), np.asarray(True)
    with pytest.raises(JqntError, match="random"):
        call("Dropout", (x, half, train))


CASTS = [
    (np.float32, TensorProto.FLOAT8E4M3FN), (np.float16, TensorProto.FLOAT8E5M2),
    (np.float32, TensorProto.FLOAT8E4M3FNUZ), (np.float32, TensorProto.FLOAT8E8M0),
    (np.float32, TensorProto.FLOAT4E2M1), (np.float32, TensorProto.BFLOAT16),
    (np.float32, TensorProto.INT4), (np.float32, TensorProto.UINT8), (np.int32, TensorProto.INT4),
    (np.float32, TensorProto.BOOL), (np.uint8, TensorProto.INT8),
]  # fmt: skip


@pytest.mark.parametrize("source, target", CASTS)
@pytest.mark.parametrize("saturate", [0, 1])
def test_casts_agree_with_the_reference(source, target, saturate):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 2, 200), rng.normal(0, 300, 50), [0.0, 0.5, 1.5, 448, 464]])
    x = np.abs(x) if np.dtype(source).kind == "u" or target == TensorProto.UINT8 else x
    x = np.minimum(x, 250).astype(source) if target == TensorProto.UINT8 else x.astype(source)
    attrs = {"to": target, "saturate": saturate}
    proto = model("Cast", {"x": x}, [("y", target)], 24, **attrs)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    for found in (call("Cast", (x,), 24, **attrs), call("Cast", (jnp.asarray(x),), 24, **attrs)):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(
            np.asarray(found).astype(np.float32), wanted.astype(np.float32)
        )


def test_the_first_cast_names_its_type():
    found = call("Cast", (np.asarray([1.7, 2.2], np.float32),), since=5, to="INT32")
    assert found.dtype == np.int32 and found.tolist() == [1, 2]


@pytest.mark.parametrize("op, since", [("Sqrt", 13), ("ReduceL2", 18)])
def test_roots_have_a_finite_derivative_at_zero(op, since):
    slope = jax.grad(lambda x: jnp.sum(call(op, (x,), since)))
    np.testing.assert_array_equal(slope(jnp.zeros(3)), np.zeros(3))
    x = jnp.asarray([4.0, 9.0])
    wanted = [0.25, 1 / 6] if op == "Sqrt" else x / jnp.sqrt(97.0)
    np.testing.assert_allclose(slope(x), wanted, rtol=1e-6)


def test_the_type_alone_counts_in_castlike():
    x = np.ones((2,), np.float32)
    (found,) = run_eagerly(
        model("CastLike", {"x": x, "like": np.ones((3, 1, 2), np.int32)}, [("y", 6)], 19),
        {"x": x, "like": np.ones((3, 1, 2), np.int32)},
    )
    assert found.shape == (2,) and found.dtype == np.int32


def test_an_axis_outside_the_rank_names_the_node():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(JqntError, match=r"Softmax node 'the_node': axis 2"):
        run_eagerly(model("Softmax", {"x": x}, floats("y"), 13, axis=2), {"x": x})
