"""Equalization: the float function stays, the ranges of neighbours meet (DFQ, eq. 11)."""

import jax
import numpy as np
import pytest
from built import built, node, reference

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.transforms.channels import equalizable_pairs
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize, rescale
from jqnt.transforms.fold_bn import fold_bn

RNG = np.random.default_rng(0)


def skewed(*shape: int, axis: int = 0) -> np.ndarray:
    """Weights whose channels differ in range by a factor of up to a hundred."""
    w = RNG.normal(size=shape)
    spread = 10 ** RNG.uniform(-1, 1, shape[axis])
    return w * spread.reshape([-1 if d == axis else 1 for d in range(len(shape))])


def ranges(w: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(np.asarray(w), axis, 0)).reshape(w.shape[axis], -1).max(1)


def equalized(model, shape, pairs: int):
    graph, params, _ = import_onnx(model)
    assert len(equalizable_pairs(graph, params)) == pairs
    new_graph, new_params = equalize(graph, params)
    x = {"x": 3 * RNG.normal(size=shape).astype(np.float32)}
    found = lower(new_graph)(new_params, {}, x)
    for name, value in reference(model, x).items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max()
    return new_graph, new_params


def chain(between, first="c1", second="c2", **more):
    """Conv - `between` - Conv on 4 -> 8 -> 3 channels."""
    model = built(
        [
            node("Conv", "x w1 b1", first, pads=[1] * 4),
            *between,
            node("Conv", f"{second} w2 b2", "y"),
        ],
        {"x": ["N", 4, 6, 6]},
        ["y"],
        {
            "w1": skewed(8, 4, 3, 3),
            "b1": RNG.normal(size=8),
            "w2": skewed(3, 8, 1, 1, axis=1),
            "b2": RNG.normal(size=3),
            **more,
        },
    )
    return model


SIX = {"zero": np.float32(0), "six": np.float32(6)}
BETWEEN = {
    "Relu": ([node("Relu", "c1", "c2")], {}),
    "nothing": ([node("LeakyRelu", "c1", "c2", alpha=1.0)], {}),
    "LeakyRelu": ([node("LeakyRelu", "c1", "c2", alpha=0.1)], {}),
    "PRelu": ([node("PRelu", "c1 slope", "c2")], {"slope": RNG.normal(size=(8, 1, 1))}),
    "Relu6": ([node("Clip", "c1 zero six", "c2")], SIX),
    "Clip both": ([node("Clip", "c1 lo six", "c2")], {"lo": np.float32(-0.5), **SIX}),
    "Clip below": ([node("Clip", "c1 lo", "c2")], {"lo": np.float32(-0.5)}),
    "Clip of nothing": ([node("Clip", "c1", "c2")], {}),
    "MaxPool": ([node("MaxPool", "c1", "c2", kernel_shape=[2, 2], strides=[2, 2])], {}),
    "AveragePool": (
        [node("AveragePool", "c1", "c2", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)],
        {},
    ),
    "Pad and Relu6": (
        [node("Pad", "c1 pads", "p"), node("Clip", "p zero six", "c2")],
        {"pads": np.asarray([0, 0, 1, 1, 0, 0, 2, 2]), **SIX},
    ),
    "reflect": (
        [node("Pad", "c1 pads", "c2", mode="reflect")],
        {"pads": np.asarray([0, 0, 1, 1, 0, 0, 2, 2])},
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_commutes(case):
    between, more = BETWEEN[case]
    graph, params = equalized(chain(between, **more), (2, 4, 6, 6), pairs=1)
    np.testing.assert_allclose(ranges(params["w1"], 0), ranges(params["w2"], 1), rtol=1e-5)
    assert "Clip" not in [n.op for n in graph.nodes]


NOT_BETWEEN = {
    "Tanh": [node("Tanh", "c1", "c2")],
    "two readers": [node("Relu", "c1", "r"), node("Add", "r c1", "c2")],
    "constant pad": [node("Pad", "c1 pads one", "c2")],
    "padded channels": [node("Pad", "c1 channels", "p"), node("Slice", "p start end axes", "c2")],
    "transposed": [node("Transpose", "c1", "c2", perm=[0, 1, 3, 2])],
    "computed bound": [node("ReduceMax", "x", "m", keepdims=0), node("Clip", "c1 - m", "c2")],
}


@pytest.mark.parametrize("case", NOT_BETWEEN)
def test_what_does_not_commute(case):
    more = {
        "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
        "channels": np.asarray([0, 1, 0, 0, 0, 0, 0, 0]),
        "one": np.float32(1),
        "start": np.asarray([0]),
        "end": np.asarray([8]),
        "axes": np.asarray([1]),
    }
    equalized(chain(NOT_BETWEEN[case], **more), (2, 4, 6, 6), pairs=0)


def test_an_output_stays():
    model = chain([node("Relu", "c1", "c2")])
    model.graph.output.append(model.graph.output[0])
    model.graph.output[1].name = "c2"
    equalized(model, (2, 4, 6, 6), pairs=0)


def test_depthwise_between_relu6():
    model = built(
        [
            node("Conv", "x w1 b1", "a"),
            node("Clip", "a zero six", "b"),
            node("Conv", "b wd", "c", group=8, pads=[1] * 4),
            node("Clip", "c zero six", "d"),
            node("Conv", "d w2", "y"),
        ],
        {"x": ["N", 4, 6, 6]},
        ["y"],
        {
            "w1": skewed(8, 4, 1, 1),
            "b1": RNG.normal(size=8),
            "wd": skewed(8, 1, 3, 3),
            "w2": skewed(3, 8, 1, 1, axis=1),
            **SIX,
        },
    )
    graph, params = equalized(model, (2, 4, 6, 6), pairs=2)
    # The fixed point of three layers: r = (r1 r2 r3)^(1/3) in each.
    wanted = ranges(params["w1"], 0)
    np.testing.assert_allclose(ranges(params["wd"], 0), wanted, rtol=3e-3)
    np.testing.assert_allclose(ranges(params["w2"], 1), wanted, rtol=3e-3)
    bounds = [v for v in graph.constants.values() if v.shape == (8, 1, 1)]
    assert len(bounds) == 2 and [n.op for n in graph.nodes].count("Min") == 2
    again, same = equalize(graph, params)
    assert len(again.nodes) == len(graph.nodes)
    np.testing.assert_allclose(same["wd"], params["wd"], rtol=5e-3)


@pytest.mark.parametrize("group", [2, 8])
def test_a_grouped_reader(group):
    model = built(
        [
            node("Conv", "x w1 b1", "a"),
            node("Relu", "a", "b"),
            node("Conv", "b w2", "y", group=group),
        ],
        {"x": ["N", 4, 6, 6]},
        ["y"],
        {
            "w1": skewed(8, 4, 1, 1),
            "b1": RNG.normal(size=8),
            "w2": RNG.normal(size=(16, 8 // group, 3, 3)),
        },
    )
    _, params = equalized(model, (2, 4, 6, 6), pairs=1)
    per_group = np.abs(params["w2"]).reshape(group, 16 // group, 8 // group, -1).max((1, 3))
    np.testing.assert_allclose(ranges(params["w1"], 0), per_group.reshape(-1), rtol=1e-5)


HEADS = {
    "GlobalAveragePool Flatten": [node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f")],
    "GlobalMaxPool Reshape": [node("GlobalMaxPool", "r", "p"), node("Reshape", "p shape", "f")],
    "GlobalAveragePool Squeeze": [
        node("GlobalAveragePool", "r", "p"),
        node("Squeeze", "p axes", "f"),
    ],
    "ReduceMean": [node("ReduceMean", "r", "f", axes=[2, 3], keepdims=0)],
    "Flatten": [node("MaxPool", "r", "p", kernel_shape=[3, 3]), node("Flatten", "p", "f")],
}


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("case", HEADS)
def test_into_a_matrix_product(case, op):
    features = 8 * (16 if case == "Flatten" else 1)
    model = built(
        [node("Conv", "x w1 b1", "a"), node("Relu", "a", "r"), *HEADS[case], node(op, "f w2", "y")],
        {"x": ["N", 4, 6, 6]},
        ["y"],
        {
            "w1": skewed(8, 4, 1, 1),
            "b1": RNG.normal(size=8),
            "w2": skewed(features, 5),
            "shape": np.asarray([0, -1]),
            "axes": np.asarray([2, 3]),
        },
    )
    _, params = equalized(model, (2, 4, 6, 6), pairs=1)
    r2 = np.abs(params["w2"]).reshape(8, -1).max(1)
    np.testing.assert_allclose(ranges(params["w1"], 0), r2, rtol=1e-5)


def test_a_product_over_another_axis_is_no_pair():
    model = built(
        [node("Conv", "x w1", "a"), node("MatMul", "a w2", "y")],
        {"x": ["N", 4, 8, 8]},
        ["y"],
        {"w1": skewed(8, 4, 1, 1), "w2": RNG.normal(size=(8, 5))},
    )
    equalized(model, (2, 4, 8, 8), pairs=0)


def test_matrix_products_in_a_row():
    model = built(
        [
            node("Gemm", "x w1 b1", "a", transB=1),
            node("Clip", "a zero six", "b"),
            node("MatMul", "b w2", "y"),
        ],
        {"x": ["N", 4]},
        ["y"],
        {"w1": skewed(8, 4), "b1": RNG.normal(size=8), "w2": skewed(8, 5), **SIX},
    )
    _, params = equalized(model, (6, 4), pairs=1)
    np.testing.assert_allclose(ranges(params["w1"], 0), ranges(params["w2"], 0), rtol=1e-5)


def attention(gate=False):
    """One head-split attention of 2 heads by 4, or a gated feed-forward part, on [N, T, 6]."""
    heads = [
        node("Reshape", "q split", "qs"), node("Transpose", "qs", "qh", perm=[0, 2, 1, 3]),
        node("Reshape", "k split", "ks"), node("Transpose", "ks", "kh", perm=[0, 2, 3, 1]),
        node("MatMul", "qh kh", "scores"), node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "x wv", "v"), node("Add", "bv v", "vb"),
        node("Reshape", "vb split", "vs"), node("Transpose", "vs", "vh", perm=[0, 2, 1, 3]),
        node("MatMul", "p vh", "mixed"), node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back join", "c2"),
    ]  # fmt: skip
    gated = [
        node("MatMul", "x wv", "v"), node("Add", "v bv", "vb"),
        node("Sigmoid", "q", "g"), node("Mul", "g vb", "c2"),
    ]  # fmt: skip
    ends = [node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k")]
    return built(
        [*ends, *(gated if gate else heads), node("MatMul", "c2 wo", "y")],
        {"x": ["N", "T", 6]},
        ["y"],
        {
            **{f"w{n}": skewed(6, 8, axis=1) for n in "qkv"},
            "bv": RNG.normal(size=8),
            "wo": skewed(8, 5),
            "split": np.asarray([0, -1, 2, 4]),
            "join": np.asarray([0, -1, 8]),
        },
    )


@pytest.mark.parametrize("gate", [False, True])
def test_values_and_output_of_attention_and_gated_layers(gate):
    _, params = equalized(attention(gate), (2, 3, 6), pairs=1)
    np.testing.assert_allclose(ranges(params["wv"], 1), ranges(params["wo"], 0), rtol=1e-4)


def test_given_scales_keep_the_function():
    model = chain([node("Clip", "c1 zero six", "c2")], **SIX)
    graph, params, _ = import_onnx(model)
    scales = {"c1": 10 ** RNG.uniform(-1, 1, 8)}
    x = {"x": RNG.normal(size=(2, 4, 6, 6)).astype(np.float32)}
    found = lower(rescale(graph, params, scales)[0])(rescale(graph, params, scales)[1], {}, x)
    wanted = reference(model, x)["y"]
    assert np.abs(found["y"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    with pytest.raises(ConfigError, match="no pair of layers begins with tensor 'c3'"):
        rescale(graph, params, {"c3": np.ones(8)})
    with pytest.raises(ConfigError, match="must be 8 positive numbers"):
        rescale(graph, params, {"c1": np.zeros(8)})


def test_a_dead_channel_is_left_alone():
    model = chain([node("Relu", "c1", "c2")])
    graph, params, _ = import_onnx(model)
    params["w1"] = params["w1"].copy()
    params["w1"][2] = 0
    _, new = equalize(graph, params)
    np.testing.assert_array_equal(new["w2"][:, 2], params["w2"][:, 2])
    assert np.isfinite(new["b1"]).all()


def test_settings_are_checked():
    graph, params, _ = import_onnx(chain([node("Relu", "c1", "c2")]))
    with pytest.raises(ConfigError, match="positive tolerance"):
        equalize(graph, params, tolerance=0.0)


def test_real_networks_keep_their_function(data):
    for name, shape in (
        ("digits_mbv2_skew_bn", (2, 1, 32, 32)),
        ("cifar10_resnet20", (2, 3, 32, 32)),
    ):
        graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
        x = {"input": RNG.normal(size=shape).astype(np.float32)}
        before = jax.jit(lower(graph))(params, {}, x)["logits"]
        graph, params = equalize(*fold_bn(*cleanup(graph, params)))
        assert isinstance(graph, Graph)
        after = jax.jit(lower(graph))(params, {}, x)["logits"]
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
