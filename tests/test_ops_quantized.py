"""Q/DQ, integer products and the QOperator family, against int64, exact division, onnxruntime."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_node import agree, floats, model, run_eagerly, run_jqnt, run_ort
from onnx import TensorProto, helper

from jqnt.errors import JqntError
from jqnt.graph.ir import Node
from jqnt.ops.registry import find

U8 = [("y", TensorProto.UINT8)]
MICROSOFT = "com.microsoft"


def call(op, arrays, domain="", since=21, **attrs):
    node = Node(op, "n", (), ("y",), attrs, domain, since)
    return find(node).function(node, *arrays)


def codes(rng, shape, dtype=np.uint8):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def weight_codes(rng, shape):
    """int8 of seven bits: where a processor has AVX2 and no VNNI, onnxruntime clips the sum of two
    uint8 x int8 products to 16 bits, which nobody would want emulated."""
    return rng.integers(-64, 64, shape).astype(np.int8)


INTEGERS = ("uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2")


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("static", [False, True])
def test_quantization_divides_exactly_and_rounds_half_to_even(name, static):
    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    info = ml_dtypes.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    scale = np.float32(0.1)
    ties = (np.arange(low - 3, high + 3, max((high - low) // 997, 1)) + np.float32(0.5)) * scale
    x = np.concatenate([ties, rng.normal(0, (high - low) * 0.1, 1000)]).astype(np.float32)
    zero = np.asarray(1 if low == 0 else -1, dtype)
    wanted = np.clip(np.rint(x / scale).astype(np.int64) + int(zero), low, high)
    function = jax.jit(lambda x: call("QuantizeLinear", (x, scale.reshape(()), zero)))
    found = call("QuantizeLinear", (x, scale, zero)) if static else function(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found).astype(np.int64), wanted)


def test_static_codes_stay_numpy():
    x, scale, zero = np.ones((2, 3), np.float32), np.asarray(0.5, np.float32), np.uint8(3)
    found = call("QuantizeLinear", (x, scale, np.asarray(zero)))
    assert isinstance(found, np.ndarray)
    back = call("DequantizeLinear", (found, scale, np.asarray(zero)))
    assert isinstance(back, np.ndarray) and back.dtype == np.float32
    np.testing.assert_array_equal(back, x)


def test_a_scale_per_axis_and_per_block():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 10)).astype(np.float32)
    axis = np.asarray([0.1, 0.2, 0.3], np.float32)
    zeros = np.asarray([1, 2, 3], np.uint8)
    found = call("QuantizeLinear", (x, axis, zeros), axis=0)
    wanted = np.clip(np.rint(x / axis[:, None]) + zeros[:, None], 0, 255)
    np.testing.assert_array_equal(found, wanted.astype(np.uint8))
    blocks = rng.uniform(0.1, 0.3, (3, 3)).astype(np.float32)
    found = call("QuantizeLinear", (x, blocks, None), axis=-1, block_size=4, output_dtype=3)
    each = np.repeat(blocks, 4, axis=1)[:, :10]
    np.testing.assert_array_equal(found, np.clip(np.rint(x / each), -128, 127).astype(np.int8))
    back = call("DequantizeLinear", (found, blocks), axis=1, block_size=4)
    np.testing.assert_allclose(back, found.astype(np.float32) * each, rtol=1e-7)


def test_an_int32_bias_beyond_24_bits_keeps_its_zero_point_exact():
    x = np.asarray([2**30 + 1, -(2**30) + 3], np.int32)
    zero = np.asarray(2**30, np.int32)
    found = call("DequantizeLinear", (x, np.asarray(1, np.float32), zero))
    np.testing.assert_array_equal(found, np.asarray([1, -(2**31) + 3], np.float32))


@pytest.mark.parametrize(
    "scale, attrs",
    [
        (np.ones(4, np.float32), {"axis": 0}),
        (np.ones(3, np.float32), {"axis": 7}),
        (np.ones((3, 2), np.float32), {"axis": 1, "block_size": 4}),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale, attrs):
    with pytest.raises(JqntError, match="QuantizeLinear node 'n'"):
        call("QuantizeLinear", (np.ones((3, 10), np.float32), scale), **attrs)


@given(
    st.sampled_from([np.uint8, np.int8]),
    st.sampled_from([np.uint8, np.int8]),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_integer_matrix_products_are_exact(left, right, p, q, seed):
    rng = np.random.default_rng(seed)
    a, b = codes(rng, (3, 5), left), codes(rng, (5, 4), right)
    p, q = np.uint8(p).astype(left), np.uint8(q).astype(right)
    found = call("MatMulInteger", (a, b, np.asarray(p), np.asarray(q)))
    wanted = (a.astype(np.int64) - int(p)) @ (b.astype(np.int64) - int(q))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "shapes", [((5,), (5,)), ((5,), (5, 4)), ((2, 3, 5), (5,)), ((2, 3, 5), (2, 5, 4))]
)
def test_integer_matrix_products_of_every_rank(shapes):
    rng = np.random.default_rng(2)
    a, b = (codes(rng, s) for s in shapes)
    zero = np.asarray(7, np.uint8)
    wanted = np.matmul(a.astype(np.int64) - 7, b.astype(np.int64) - 7)
    np.testing.assert_array_equal(call("MatMulInteger", (a, b, zero, zero)), wanted)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("zeros", [(None, None), (130, None), (3, 9), (3, (1, 2, 3, 4))])
def test_integer_convolutions_are_exact(group, zeros):
    rng = np.random.default_rng(3)
    x, w = codes(rng, (2, 4, 6, 5)), codes(rng, (4, 4 // group, 3, 3), np.int8)
    p, q = zeros
    given = {"x": x, "w": w}
    given["p"] = None if p is None else np.asarray(p, np.uint8)
    given["q"] = None if q is None else np.asarray(q, np.int8)
    attrs = {"group": group, "pads": [1, 0, 1, 2], "strides": [2, 1]}
    proto = model("ConvInteger", given, [("y", TensorProto.INT32)], 13, **attrs)
    (found,) = run_jqnt(proto, given)
    real = model(
        "Conv", {"x": x.astype(np.float64), "w": w.astype(np.float64)},
        [("y", TensorProto.DOUBLE)], 13, **attrs,
    )  # fmt: skip
    left = x.astype(np.float64) - (p or 0)
    right = w.astype(np.float64) - np.reshape(np.asarray(q or 0), (-1, 1, 1, 1))
    (wanted,) = run_jqnt(real, {"x": left, "w": right})
    np.testing.assert_array_equal(found, wanted)


def test_a_quantized_convolution_agrees_with_onnxruntime():
    rng = np.random.default_rng(4)
    given = {
        "x": codes(rng, (2, 4, 8, 8)),
        "xs": np.asarray(0.02, np.float32),
        "xz": np.asarray(120, np.uint8),
        "w": weight_codes(rng, (6, 4, 3, 3)),
        "ws": rng.uniform(0.001, 0.01, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "ys": np.asarray(0.05, np.float32),
        "yz": np.asarray(130, np.uint8),
        "b": rng.integers(-500, 500, 6).astype(np.int32),
    }
    proto = model("QLinearConv", given, U8, 13, [k for k in given if k != "x"], pads=[1, 1, 1, 1])
    (ours,), (theirs,) = run_jqnt(proto, given), run_ort(proto, given)
    same(ours, theirs)


def same(ours, theirs, most=0.01):
    """Equal but for a few codes, which rounding in another order moves by one."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    off = np.abs(ours.astype(np.int32) - theirs.astype(np.int32))
    assert off.max(initial=0) <= 1 and np.mean(off > 0) <= most


def triple(rng, name, shape, scale, zero, dtype=np.uint8):
    return {
        name: codes(rng, shape, dtype),
        f"{name}_scale": np.asarray(scale, np.float32),
        f"{name}_zero": np.asarray(zero, dtype),
    }


def ends(scale, zero, dtype=np.uint8):
    return {"y_scale": np.asarray(scale, np.float32), "y_zero": np.asarray(zero, dtype)}


def operators():
    rng = np.random.default_rng(5)
    shape = (2, 3, 8, 8)
    one = triple(rng, "a", shape, 0.0513, 120)
    two = {**one, **triple(rng, "b", shape, 0.0317, 130)}
    small = {**one, **triple(rng, "b", (3, 1, 1), 0.0317, 130)}
    signed = {
        **triple(rng, "a", shape, 0.0513, 3, np.int8),
        **triple(rng, "b", shape, 0.0209, -7, np.int8),
    }
    yield "QLinearAdd", {**two, **ends(0.0703, 125)}, {}
    yield "QLinearAdd", {**small, **ends(0.0703, 125)}, {}
    yield "QLinearAdd", {**signed, **ends(0.0703, -3, np.int8)}, {}
    yield "QLinearMul", {**two, **ends(0.2011, 125)}, {}
    yield "QLinearMul", {**signed, **ends(0.2011, 5, np.int8)}, {}
    yield "QLinearSigmoid", {**one, **ends(1 / 256, 0)}, {}
    yield "QLinearLeakyRelu", {**one, **ends(0.0487, 90)}, {"alpha": 0.1}
    yield "QLinearGlobalAveragePool", {**one, **ends(0.0107, 128)}, {"channels_last": 0}
    yield (
        "QLinearAveragePool",
        {**one, **ends(0.0487, 120)},
        {"kernel_shape": [3, 3], "strides": [2, 2]},
    )
    padded = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    yield "QLinearAveragePool", {**one, **ends(0.0487, 120)}, padded
    yield "QLinearAveragePool", {**one, **ends(0.0487, 120)}, {**padded, "count_include_pad": 1}
    rows = triple(rng, "a", (4, 10), 0.0513, 120)
    yield "QLinearSoftmax", {**rows, **ends(1 / 256, 0)}, {"axis": -1}
    joined = {**ends(0.0611, 100), **two}
    yield "QLinearConcat", joined, {"axis": 1}
    choice = {"condition": rng.integers(0, 2, shape).astype(bool), **two, **ends(0.0611, 100)}
    yield "QLinearWhere", choice, {}
    product = {
        **triple(rng, "a", (4, 6), 0.0513, 120),
        **triple(rng, "b", (6, 5), 0.0209, 3, np.int8),
        "b": weight_codes(rng, (6, 5)),
    }
    bias = {"c": rng.integers(-900, 900, 5).astype(np.int32)}
    yield "QGemm", {**product, **bias, **ends(0.1003, 110)}, {}
    yield "QGemm", {**product, "c": None, **ends(0.1003, 110)}, {}
    turned = {**product, "a": product["a"].T.copy(), "b": product["b"].T.copy()}
    yield "QGemm", {**turned, **bias, **ends(0.1003, 110)}, {"transA": 1, "transB": 1}


@pytest.mark.parametrize("op, given, attrs", list(operators()))
def test_operators_on_quantized_tensors_agree_with_onnxruntime(op, given, attrs):
    kind = TensorProto.INT8 if given["y_zero"].dtype == np.int8 else TensorProto.UINT8
    fixed = [k for k, v in given.items() if v is not None and ("scale" in k or "zero" in k)]
    proto = model(op, given, [("y", kind)], 13, fixed, domain=MICROSOFT, **attrs)
    if op == "QLinearSoftmax":
        proto.graph.node[0].attribute.append(helper.make_attribute("opset", 13))
    (ours,), (theirs,) = run_jqnt(proto, given), run_ort(proto, given)
    same(ours, theirs)


def test_a_quantized_gemm_without_output_scale_is_float():
    rng = np.random.default_rng(6)
    given = {**triple(rng, "a", (4, 6), 0.05, 120), **triple(rng, "b", (6, 5), 0.02, 3, np.int8)}
    given["b"] = weight_codes(rng, (6, 5))
    agree(model("QGemm", given, floats("y"), 13, domain=MICROSOFT), given)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_of_few_bits_agree_with_onnxruntime(bits, zero):
    rng = np.random.default_rng(7)
    n, k, block = 5, 80, 32
    blocks = -(-k // block)
    given = {
        "a": rng.normal(size=(3, k)).astype(np.float32),
        "b": codes(rng, (n, blocks, block * bits // 8)),
        "scales": rng.uniform(0.01, 0.1, n * blocks).astype(np.float32),
        "zeros": codes(rng, (n * -(-blocks * bits // 8),)) if zero else None,
    }
    fixed = [name for name, v in given.items() if name != "a" and v is not None]
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    proto = model("MatMulNBits", given, floats("y"), 13, fixed, domain=MICROSOFT, **attrs)
    agree(proto, given, rtol=1e-4, atol=1e-3)


def test_other_widths_and_groups_are_refused():
    arrays = (np.ones((1, 32), np.float32), np.ones((1, 1, 12), np.uint8), np.ones(1, np.float32))
    with pytest.raises(JqntError, match="3 bits"):
        call("MatMulNBits", arrays, MICROSOFT, 1, K=32, N=1, bits=3, block_size=32)


def test_operands_wider_than_8_bits_are_refused():
    wide = np.ones((2, 2), np.int16)
    with pytest.raises(JqntError, match="int16"):
        call("MatMulInteger", (wide, wide))


def test_dynamic_quantization_agrees_with_onnxruntime():
    given = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    proto = model("DynamicQuantizeLinear", given, [*U8, ("s", 1), ("z", TensorProto.UINT8)], 11)
    for ours, theirs in zip(run_eagerly(proto, given), run_ort(proto, given), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("batch", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (1, 1)])
def test_fused_products_agree_with_onnxruntime(batch, turned):
    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=(3, 3, 3)).astype(np.float32) for _ in range(2))
    attrs = {"alpha": 0.5, "transA": turned[0], "transB": turned[1]}
    attrs |= {"transBatchA": batch[0], "transBatchB": batch[1]}
    given = {"a": a, "b": b}
    agree(
        model("FusedMatMul", given, floats("y"), 13, domain=MICROSOFT, **attrs), given, 1e-4, 1e-5
    )
