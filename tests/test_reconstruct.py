"""Reconstruction of whole networks: the walk, the layers found, errors, plans, laws of freezing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import FP16, Granularity, Integer
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.shapes import infer_shapes
from jqnt.learn import walk
from jqnt.learn.adaround import adaround
from jqnt.learn.calibrate import calibrate
from jqnt.learn.reads import reads
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import learn_rounding
from jqnt.placement import plan
from jqnt.plan import Choice, Options, Spec, bind
from jqnt.quantizers import Affine, Cast, SoftRound
from jqnt.rules import Rule, scheme

KEY = jax.random.key(0)
FAST = functools.partial(learn_rounding, steps=30)
W3A8 = scheme("int3", "uint8")


def model(nodes, weights, x_shape, output="y"):
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return import_onnx(onnx.shape_inference.infer_shapes(proto))[:2]


@functools.cache
def residual():
    """Conv, depthwise Conv, pointwise Conv and Add, mean, Gemm: every shape of layer but MatMul."""
    r = np.random.default_rng(0)
    weights = {
        "w1": r.normal(size=(8, 2, 3, 3)),
        "b1": r.normal(size=8),
        "w2": r.normal(size=(8, 1, 3, 3)),
        "b2": r.normal(size=8),
        "w3": r.normal(size=(8, 8, 1, 1)),
        "b3": r.normal(size=8),
        "w4": r.normal(size=(4, 8)),
        "b4": r.normal(size=4),
    }
    node, pads = helper.make_node, [1, 1, 1, 1]
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=pads),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", group=8, pads=pads),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"], "conv3"),
        node("Add", ["c3", "r1"], ["a"]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["y"], "gemm", transB=1),
    ]
    return model(nodes, weights, ["N", 2, 6, 6])


def batches(graph, params, count=3, size=16):
    r = np.random.default_rng(1)
    return [{"x": r.normal(size=(size, 2, 6, 6)).astype(np.float32)} for _ in range(count)]


@functools.cache
def calibrated(rules=W3A8):
    graph, params = residual()
    chosen, data = plan(graph, rules), batches(graph, params)
    return graph, params, chosen, calibrate(lower(graph), params, chosen, data), data


def test_the_frontier_of_a_residual_block():
    graph, _ = residual()
    at = {node.name: i for i, node in enumerate(graph.nodes)}
    assert walk.frontier(graph, 0, ["r1"]) == ("x",)
    assert set(walk.frontier(graph, at["conv2"], ["r1", "r2", "f"])) == {"r1"}
    assert set(walk.frontier(graph, at["conv3"], ["r2", "f"])) == {"r1", "r2"}
    assert set(walk.frontier(graph, at["gemm"], ["f"])) == {"f"}


def test_both_networks_arrive_at_what_a_whole_pass_gives():
    graph, params, chosen, theta, data = calibrated()
    networks = walk.Networks(params, params, bind(theta, chosen))
    front, apply = walk.start(graph, networks, data), lower(graph)
    for names in (("r1",), ("r1", "r2"), ("a",)):
        exact = [apply(params, {}, b, want=names) for b in data]
        lossy = [apply(params, networks.qparams, b, want=names) for b in data]
        for pair, e, q in zip(walk.look(graph, front, names, networks), exact, lossy, strict=True):
            for name in names:
                np.testing.assert_allclose(pair.exact[name], e[name], rtol=1e-4, atol=1e-4)
                scale = networks.qparams[name].scale if name in networks.qparams else 0
                off = np.abs(np.asarray(pair.lossy[name] - q[name]))
                assert off.max() <= 1e-4 + scale and (off > 1e-4).mean() < 0.01
        front = walk.advance(graph, front, names, networks)
        assert front.names == names


def test_what_fits_is_floats_within_the_bytes():
    shapes = {
        "a": jax.ShapeDtypeStruct((10, 5), jnp.float32),
        "n": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    assert walk.fits(shapes, ["a"], count=3, memory=2 * 3 * 200)
    assert not walk.fits(shapes, ["a"], count=3, memory=2 * 3 * 200 - 1)
    assert not walk.fits(shapes, ["a", "n"], count=1, memory=10**6)


def test_reads_finds_layers_with_their_biases():
    graph, params = residual()
    found = reads(graph, infer_shapes(graph, params), {"w1", "w2", "w4"})
    assert [(r.node.name, r.weight, r.data, r.bias) for r in found] == [
        ("conv1", "w1", "x", "b1"),
        ("conv2", "w2", "r1", "b2"),
        ("gemm", "w4", "f", "b4"),
    ]
    assert found[1].layer.groups == 8


def test_reads_sees_through_transposes_and_finds_an_added_bias():
    node = helper.make_node
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Identity", ["t"], ["i"]),
        node("MatMul", ["x", "i"], ["m"], "matmul"),
        node("Add", ["b", "m"], ["y"]),
    ]
    w, b = np.arange(6.0).reshape(2, 3), np.ones(2)
    graph, params = model(nodes, {"w": w, "b": b}, [4, 3])
    weights = [name for name in graph.params if name != "b"]  # import may fold the transpose
    (read,) = reads(graph, infer_shapes(graph, params), weights)
    assert read.bias == "b" and read.node.name == "matmul"


@pytest.mark.parametrize("bias", [False, True])
def test_errors_are_those_of_the_layers(bias):
    """The reported figures against both networks run whole, in float64."""
    graph, params, chosen, theta, data = calibrated()
    result = reconstruct(graph, params, theta, chosen, data, FAST, bias=bias, key=KEY)
    assert [layer.weight for layer in result.layers] == ["w1", "w2", "w3", "w4"]
    apply, qparams = lower(graph), bind(result.theta, chosen)
    outputs = {"w1": "c1", "w2": "c2", "w3": "c3", "w4": "y"}
    for layer in result.layers:
        y = outputs[layer.weight]
        # Exact float biases and outputs not yet on a grid: the layer's error alone.
        free = {k: v for k, v in qparams.items() if k not in (y, f"b{layer.weight[1:]}")}
        error = signal = 0.0
        for batch in data:
            exact = apply(params, {}, batch, want=(y,))[y]
            lossy = apply(result.params, free, batch, want=(y,))[y]
            shape = (1, -1) + (1,) * (exact.ndim - 2)
            without = exact - params[f"b{layer.weight[1:]}"].reshape(shape)
            error += float(((np.asarray(exact, np.float64) - np.asarray(lossy)) ** 2).sum())
            signal += float((np.asarray(without, np.float64) ** 2).sum())
        np.testing.assert_allclose(layer.after, error / signal, rtol=0.05, atol=1e-6)
        assert layer.after <= layer.before * (1 + 1e-4)


def test_the_network_gains():
    graph, params, chosen, theta, data = calibrated()
    apply = lower(graph)

    def error(params_q, theta):
        return sum(
            float(
                jnp.sum(
                    (apply(params, {}, b)["y"] - apply(params_q, bind(theta, chosen), b)["y"]) ** 2
                )
            )
            for b in data
        )

    learned = adaround(graph, params, theta, chosen, data, steps=200, key=KEY)
    corrected = reconstruct(graph, params, theta, chosen, data, FAST, bias=True, key=KEY)
    assert error(params, learned) < 0.5 * error(params, theta)
    assert error(corrected.params, corrected.theta) < 0.5 * error(params, theta)


def test_memory_changes_the_way_not_the_result():
    graph, params, chosen, theta, data = calibrated()
    kept = reconstruct(graph, params, theta, chosen, data, FAST, key=KEY)
    again = reconstruct(graph, params, theta, chosen, data, FAST, memory=0, key=KEY)
    for a, b in zip(kept.layers, again.layers, strict=True):
        np.testing.assert_allclose(a.after, b.after, rtol=0.02)
    repeated = reconstruct(graph, params, theta, chosen, lambda: iter(data), FAST, key=KEY)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept.theta, repeated.theta))


def test_rounding_the_frozen_weights_to_nearest_gives_the_learned_codes():
    graph, params, chosen, theta, data = calibrated()
    learned = adaround(graph, params, theta, chosen, data, steps=30, key=KEY)
    frozen, encodings = freeze(graph, params, bind(learned, chosen))
    for name in ("w1", "w2", "w3", "w4"):
        assert isinstance(learned[name], SoftRound)
        w = learned[name](jnp.asarray(params[name]))
        codes = encodings[name].quantize(np.asarray(frozen[name]))
        np.testing.assert_allclose(encodings[name].dequantize(codes), w, rtol=1e-6, atol=1e-7)
        moved = codes - np.floor(
            np.asarray(params[name])
            / encodings[name].expand(encodings[name].scale, params[name].shape)
        )
        assert set(np.unique(moved)) <= {-1, 0, 1} and (moved == 1).any()


def test_under_a_mixed_plan_only_integer_layers_are_learned():
    rules = (Rule(name="w2", format="float16"), Rule(name="w3", format="int8"), *W3A8)
    graph, params, chosen, theta, data = calibrated(rules)
    result = reconstruct(graph, params, theta, chosen, data, FAST, key=KEY)
    assert [layer.weight for layer in result.layers] == ["w1", "w3", "w4"]
    assert isinstance(result.theta["w2"], Cast) and result.theta["w2"].format == FP16
    assert all(layer.after <= layer.before for layer in result.layers)


def test_without_activation_quantizers():
    graph, params, _, _, data = calibrated()
    chosen = plan(
        graph, (Rule(role="weight", format="int3"), Rule(role="activation", format="float32"))
    )
    theta = calibrate(lower(graph), params, chosen, data)
    result = reconstruct(graph, params, theta, chosen, data, FAST, key=KEY)
    assert len(result.layers) == 4 and all(e.after < e.before for e in result.layers)


def test_a_weight_that_two_nodes_read_is_rounded_once_for_both():
    r = np.random.default_rng(2)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "first"),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "w"], ["y"], "second"),
    ]
    graph, params = model(nodes, {"w": r.normal(size=(6, 6))}, ["N", 6])
    data = [{"x": r.normal(size=(64, 6)).astype(np.float32)}]
    chosen = plan(
        graph, (Rule(role="weight", format="int3"), Rule(role="activation", format="uint8"))
    )
    theta = calibrate(lower(graph), params, chosen, data)
    result = reconstruct(graph, params, theta, chosen, data, FAST, bias=True, key=KEY)
    assert [layer.nodes for layer in result.layers] == [("first", "second")]
    assert result.layers[0].after <= result.layers[0].before


def test_progress_is_told_layer_by_layer():
    graph, params, chosen, theta, data = calibrated()
    told = []
    adaround(
        graph, params, theta, chosen, data, steps=5, progress=lambda *e: told.append(e), key=KEY
    )
    assert [event[:2] for event in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[0][2]["after"] <= told[0][2]["before"]


def test_refusals():
    graph, params, chosen, theta, data = calibrated()
    with pytest.raises(DataError, match="no calibration batches"):
        adaround(graph, params, theta, chosen, [], key=KEY)
    with pytest.raises(DataError, match="batch 0 has no 'x'; it has image"):
        adaround(graph, params, theta, chosen, [{"image": data[0]["x"]}], key=KEY)
    tied = chosen.replace(tied={"w2": "w1"})
    with pytest.raises(UnsupportedError, match="weight 'w1' shares its quantizer"):
        adaround(graph, params, theta, tied, data, key=KEY)
    spec = chosen.specs["w1"]
    other = Spec(Integer(8, True), Granularity(0), True, "weight")
    searched = chosen.replace(choices={"c": Choice(("w1",), ((spec,), (other,)))})
    options = {**theta, "c": Options(jnp.zeros(2), {"w1": (theta["w1"], theta["w1"])})}
    del options["w1"]
    with pytest.raises(
        UnsupportedError, match="weight 'w1' is still being searched; decide choice"
    ):
        adaround(graph, params, options, searched, data, key=KEY)


def test_a_learned_rounding_can_be_learned_again():
    graph, params, chosen, theta, data = calibrated()
    once = adaround(graph, params, theta, chosen, data, steps=5, key=KEY)
    twice = adaround(graph, params, once, chosen, data, steps=5, key=KEY)
    assert isinstance(theta["w1"], Affine)
    np.testing.assert_array_equal(once["w1"].logit, twice["w1"].logit)
