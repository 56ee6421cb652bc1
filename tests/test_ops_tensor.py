"""Shapes, slices, pads, gathers, scatters, order and data-dependent shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_node import agree, floats, model, run_eagerly

from jqnt.errors import JqntError, ModelError
from jqnt.graph.ir import Node
from jqnt.ops.registry import find


def call(op, arrays, since=21, outputs=("y",), **attrs):
    node = Node(op, "n", (), outputs, attrs, "", since)
    return find(node).function(node, *arrays)


def ints(*values):
    return np.asarray(values, np.int64)


def grid(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


bounds = st.integers(-9, 9) | st.sampled_from([2**62, -(2**63)])


@given(st.integers(1, 6), bounds, bounds, st.integers(-3, 3).filter(bool))
@settings(max_examples=100, deadline=None)
def test_slices_are_those_of_the_definition(size, start, end, step):
    """start and end count from the end if negative, and are clamped to where the step can go."""
    first, last = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        first, last = np.clip([first, last], 0, size)
    else:
        first, last = np.clip(first, 0, size - 1), np.clip(last, -1, size - 1)
    wanted = list(range(int(first), int(last), step))
    x = np.arange(size)
    found = call("Slice", (x, ints(start), ints(end), ints(0), ints(step)))
    assert found.tolist() == wanted
    traced = call("Slice", (jnp.asarray(x), ints(start), ints(end), None, ints(step)))
    assert traced.tolist() == wanted


@given(
    st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3)), min_size=2, max_size=2),
    st.sampled_from(["constant", "edge", "reflect", "wrap"]),
)
@settings(max_examples=40, deadline=None)
def test_pads_static_and_traced(widths, mode):
    x = grid(5, 6)
    (a, b), (c, d) = widths
    cut = x[max(-a, 0) : 5 - max(-b, 0), max(-c, 0) : 6 - max(-d, 0)]
    more = [(max(a, 0), max(b, 0)), (max(c, 0), max(d, 0))]
    if mode == "reflect" and any(max(w) >= n for w, n in zip(more, cut.shape, strict=True)):
        return
    wanted = np.pad(cut, more, mode=mode, **({"constant_values": 7} if mode == "constant" else {}))
    pads, value = ints(a, c, b, d), np.asarray(7, np.float32)
    for data in (x, jnp.asarray(x)):
        np.testing.assert_array_equal(call("Pad", (data, pads, value), mode=mode), wanted)


def test_pads_of_every_opset():
    x = grid(2, 3)
    wanted = np.pad(x, ((0, 0), (1, 2)), constant_values=4)
    found = call("Pad", (x,), since=2, pads=(0, 1, 0, 2), value=4.0)
    np.testing.assert_array_equal(found, wanted)
    four = np.asarray(4, np.float32)
    np.testing.assert_array_equal(call("Pad", (x, ints(1, 2), four, ints(-1)), since=18), wanted)
    with pytest.raises(ModelError, match="3 pads"):
        call("Pad", (x, ints(1, 2, 3)))
    with pytest.raises(ModelError, match="crop more"):
        call("Pad", (x, ints(0, -2, 0, -2)))


REFUSED = [
    ("Reshape", (grid(2, 3), ints(4, -1)), {}, "does not fit"),
    ("Reshape", (grid(2, 3), ints(-1, -1)), {}, "does not fit"),
    ("Reshape", (grid(2, 3), ints(2, 3, 0)), {}, "does not have"),
    ("Squeeze", (grid(2, 1), ints(0)), {}, "length 1"),
    ("Unsqueeze", (grid(2), ints(0, 0)), {}, "distinct"),
    ("Unsqueeze", (grid(2), ints(5)), {}, "axis 5"),
    ("Concat", (grid(2, 3), grid(2, 4)), {"axis": 0}, "differ"),
    ("Expand", (grid(2, 3), ints(2, 4)), {}, "broadcast"),
    ("Split", (grid(5), ints(2, 2)), {"outputs": ("a", "b")}, "do not make up"),
    ("Tile", (grid(2, 3), ints(2)), {}, "rank 2"),
    ("Gather", (grid(3), ints(3)), {}, "outside axis 0"),
    ("GatherElements", (grid(3), ints(-4)), {}, "outside axis 0"),
    ("Slice", (grid(3), ints(0), ints(2), ints(0), ints(0)), {}, "step is 0"),
    ("TopK", (grid(3), ints(4)), {}, "k is 4"),
    ("ScatterND", (grid(3), ints(0)[None], grid(1)), {"reduction": "sum"}, "'sum'"),
    ("EyeLike", (grid(1, 2, 3),), {}, "rank 3"),
]


@pytest.mark.parametrize("op, arrays, attrs, message", REFUSED)
def test_operands_that_do_not_fit_name_the_node(op, arrays, attrs, message):
    with pytest.raises(ModelError, match="'n'.*" + message.replace("(", r"\(")):
        call(op, arrays, **attrs)


@pytest.mark.parametrize(
    "op, arrays",
    [
        ("Reshape", (grid(2, 3), ints(3, 2))),
        ("Expand", (grid(1, 3), ints(2, 3))),
        ("TopK", (grid(3), ints(1))),
        ("Range", (ints(0)[0], ints(4)[0], ints(1)[0])),
        ("ConstantOfShape", (ints(3),)),
    ],
)
def test_a_traced_value_cannot_decide_a_shape(op, arrays):
    with pytest.raises(ModelError, match="must be a constant"):
        jax.jit(lambda *given: call(op, given))(*arrays)


def test_a_constant_of_a_huge_shape_costs_nothing():
    found = call("ConstantOfShape", (ints(1 << 20, 1 << 20),))
    assert found.shape == (1 << 20, 1 << 20) and not any(found.strides)


def test_negative_positions_count_from_the_end():
    x = grid(3, 4)
    for data in (x, jnp.asarray(x)):
        for where in (ints(-1, 0), jnp.asarray([-1, 0])):
            np.testing.assert_array_equal(call("Gather", (data, where)), x[[-1, 0]])
            found = call("GatherND", (data, where.reshape(1, 2)))
            np.testing.assert_array_equal(found, x[-1, 0].reshape(1))
            rows = call("GatherElements", (data, where.reshape(1, 2)), axis=0)
            np.testing.assert_array_equal(rows, [[x[-1, 0], x[0, 1]]])
            written = call("ScatterElements", (data, where.reshape(1, 2), grid(1, 2)), axis=0)
            wanted = x.copy()
            wanted[-1, 0], wanted[0, 1] = 0, 1
            np.testing.assert_array_equal(written, wanted)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_scatters_agree_with_onnxruntime(op, reduction):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    if op == "ScatterND":
        order = rng.permutation(5)[:3] if reduction == "none" else ints(1, 1, 3)
        given = {"x": x, "i": order.reshape(3, 1), "u": rng.normal(size=(3, 4)).astype(np.float32)}
    else:
        rows = np.stack([rng.permutation(5)[:3] for _ in range(4)], 1)
        rows = rows if reduction == "none" else np.asarray([[0, 1, 2, 3]] * 3)
        given = {"x": x, "i": rows, "u": rng.normal(size=(3, 4)).astype(np.float32)}
    agree(model(op, given, floats("y"), 18, reduction=reduction), given)
    arrays = tuple(given.values())
    static = call(op, arrays, reduction=reduction)
    traced = call(op, tuple(map(jnp.asarray, arrays)), reduction=reduction)
    np.testing.assert_allclose(static, traced, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("largest", [0, 1])
def test_the_k_largest_and_smallest_with_ties_and_limits(dtype, largest):
    info = np.iinfo(np.int8 if dtype == np.float32 else dtype)
    x = np.asarray([[3, info.min, 5, 5, info.max, info.min, 0]]).astype(dtype)
    order = sorted(range(7), key=lambda i: (-int(x[0, i]) if largest else int(x[0, i]), i))[:4]
    for data in (x, jnp.asarray(x)):
        values, places = call("TopK", (data, ints(4)), largest=largest, outputs=("v", "i"))
        assert np.asarray(places)[0].tolist() == order
        np.testing.assert_array_equal(values, x[:, order])


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sums_and_products(op, exclusive, reverse):
    x = np.asarray([[1, 2, 3, 4], [2, 2, 1, 5]], np.int32)
    function, neutral = (np.cumsum, 0) if op == "CumSum" else (np.cumprod, 1)
    rows = x[:, ::-1] if reverse else x
    wanted = function(rows, axis=1)
    if exclusive:
        wanted = np.concatenate([np.full((2, 1), neutral), wanted[:, :-1]], axis=1)
    wanted = wanted[:, ::-1] if reverse else wanted
    for data in (x, jnp.asarray(x)):
        found = call(op, (data, ints(1)), 26, exclusive=exclusive, reverse=reverse)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)


REDUCTIONS = {
    "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min,
    "ReduceProd": np.prod, "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "ReduceSumSquare": lambda x, **k: (x * x).sum(**k),
    "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
}  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_of_every_opset(op):
    x = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    exact = x.astype(np.float64)
    for keep in (0, 1):
        wanted = REDUCTIONS[op](exact, axis=(0, 2), keepdims=bool(keep))
        for data in (x, jnp.asarray(x)):
            early = call(op, (data,), since=11, axes=(0, -1), keepdims=keep)
            late = call(op, (data, ints(0, -1)), since=18, keepdims=keep)
            for found in (early, late):
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, wanted, rtol=2e-6)
    np.testing.assert_allclose(call(op, (x,), keepdims=0), REDUCTIONS[op](exact), rtol=1e-5)
    untouched = call(op, (x, ints()), since=18, noop_with_empty_axes=1)
    assert untouched.shape == x.shape


def test_boxes_are_suppressed_as_in_onnxruntime():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 1, (2, 30, 2))
    given = {
        "boxes": np.concatenate([low, low + rng.uniform(0.1, 0.5, (2, 30, 2))], -1).astype("f4"),
        "scores": rng.uniform(0, 1, (2, 3, 30)).astype(np.float32),
        "most": ints(4),
        "iou": np.asarray([0.3], np.float32),
        "score": np.asarray([0.4], np.float32),
    }
    for centred in (0, 1):
        agree(
            model("NonMaxSuppression", given, [("y", 7)], 11, center_point_box=centred), given
        )  # fmt: skip


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("ordered", [0, 1])
def test_unique_values_agree_with_onnxruntime(axis, ordered):
    x = np.random.default_rng(0).integers(0, 3, (6, 2)).astype(np.float32)
    outputs = [("y", 1), ("first", 7), ("inverse", 7), ("counts", 7)]
    attrs = {"sorted": ordered} | ({} if axis is None else {"axis": axis})
    agree(model("Unique", {"x": x}, outputs, 11, **attrs), {"x": x})


@pytest.mark.parametrize("op", ["NonZero", "Unique", "Compress"])
def test_shapes_that_depend_on_data_need_concrete_values(op):
    arrays = (np.ones(4, np.float32), np.ones(4, bool))[: 2 if op == "Compress" else 1]
    with pytest.raises(ModelError, match=op):
        jax.jit(lambda *given: call(op, given))(*arrays)


def test_the_wrong_rank_is_an_error_with_the_shapes():
    x = grid(2, 3)
    proto = model("Transpose", {"x": x}, floats("y"), 13, perm=[0, 1, 2])
    with pytest.raises(JqntError, match=r"Transpose node 'the_node'.*float32\[2, 3\]"):
        run_eagerly(proto, {"x": x})


def test_a_trilu_diagonal_may_be_traced():
    x = grid(4, 5)
    function = jax.jit(lambda x, k: call("Trilu", (x, k), upper=0))
    for k in (-1, 0, 2):
        np.testing.assert_array_equal(function(x, np.asarray(k)), np.tril(x, k))


def test_a_one_hot_vector_for_positions_outside_is_off():
    values = np.asarray([2.0, 5.0], np.float32)
    found = call("OneHot", (ints(0, -1, 7), ints(3), values))
    np.testing.assert_array_equal(found, [[5, 2, 2], [2, 2, 5], [2, 2, 2]])


def test_a_slice_backwards_from_before_the_start_agrees_with_onnxruntime():
    given = {"x": grid(4), "s": ints(-9), "e": ints(-9), "a": ints(0), "t": ints(-1)}
    agree(model("Slice", given, floats("y"), 13, ["s", "e", "a", "t"]), given)
