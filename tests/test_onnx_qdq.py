"""QDQ models: checked by onnx, run in onnxruntime, equal to the float simulation."""

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import BF16, FP16, Granularity, Integer, Minifloat
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.interop.to_onnx import to_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.rules import Rule
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from tests.built import node
from tests.quantized_case import S8, case, encoded, ort_session

NODES = [node("Conv", "x w b", "c", pads=[1] * 4), node("Relu", "c", "r"), node("Add", "r x", "y")]


def _small(**grids):
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)}
    params = {"w": rng.normal(size=(4, 4, 3, 3)), "b": rng.normal(size=4)}
    graph, params = case(NODES, inputs, ["y"], params)
    return graph, params, encoded(graph, params, inputs, ["r", "y"], **grids), inputs


def _steps(graph, params, encodings, inputs, opset=None):
    """|onnxruntime - simulation| of the output in steps of its grid."""
    model = to_qdq(graph, params, encodings, opset=opset)
    (theirs,) = ort_session(model, optimized=False).run(["y"], inputs)
    ours = lower(graph)(params, thaw(encodings), inputs)["y"]
    scale = encodings["y"].scale if "y" in encodings and encodings["y"].scale is not None else 1e-3
    return model, np.abs(theirs - np.asarray(ours)) / scale


def _opset(model):
    return next(entry.version for entry in model.opset_import if entry.domain == "")


GRIDS = {
    "uint8": ({}, 17),
    "int8": ({"activation": S8}, 17),
    "per tensor": ({"per_channel": False}, 17),
    "uint16": ({"activation": Integer(16)}, 21),
    "int4 weights": ({"weight": Integer(4, signed=True)}, 21),
    "uint4": ({"activation": Integer(4)}, 21),
    "6 bits": ({"activation": Integer(6), "weight": Integer(6, signed=True)}, 17),
    "3 and 12 bits": ({"activation": Integer(12), "weight": Integer(3, signed=True)}, 21),
    "strict": ({"activation": Integer(8, signed=True, strict=True)}, 17),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_integer_format(name):
    grids, opset = GRIDS[name]
    model, steps = _steps(*_small(**grids))
    assert _opset(model) == opset
    assert steps.max() <= 1.01
    assert (steps < 0.01).mean() > 0.9


@pytest.mark.parametrize("fmt", [FP16, BF16, Minifloat(4, 3, ieee=False)], ids=lambda f: f.name)
def test_float_formats_are_casts(fmt):
    graph, params, encodings, inputs = _small()
    chosen = {"r": Encoding(fmt), "w": Encoding(fmt)}
    kept = {name: e for name, e in encodings.items() if name not in ("r", "w", "b")}
    model, steps = _steps(graph, params, Encodings({**kept, **chosen}), inputs)
    assert steps.max() <= 1.01
    assert "Cast" in {n.op_type for n in model.graph.node}


def test_narrow_weights_below_opset_21_are_int8():
    graph, params, encodings, inputs = _small(weight=Integer(4, signed=True))
    model, steps = _steps(graph, params, encodings, inputs, opset=17)
    held = {t.name: t.data_type for t in model.graph.initializer}
    assert held["w_quantized"] == onnx.TensorProto.INT8
    assert steps.max() <= 1.01


def test_blocks_of_a_matrix():
    rng = np.random.default_rng(1)
    inputs = {"x": rng.normal(size=(5, 32)).astype(np.float32)}
    graph, params = case(
        [node("MatMul", "x w", "y")], inputs, ["y"], {"w": rng.normal(size=(32, 6))}
    )
    encodings = encoded(graph, params, inputs, ["y"])
    scale = (np.abs(params["w"]).reshape(2, 16, 6).max(1) / 7).astype(np.float32)
    blocks = Encoding(
        Integer(4, signed=True), scale, np.zeros(scale.shape, np.int64), Granularity(0, 16)
    )
    encodings = Encodings({**encodings.tensors, "w": blocks})
    model, steps = _steps(graph, params, encodings, inputs)
    assert _opset(model) == 21
    assert steps.max() <= 1.01


def test_names_stay_on_the_float_side():
    graph, params, encodings, _ = _small()
    model = to_qdq(graph, params, encodings)
    made = {name: n for n in model.graph.node for name in n.output}
    assert made["r"].op_type == "Relu"
    assert made["r_DequantizeLinear_Output"].input[0] == "r_QuantizeLinear_Output"
    assert made["y"].input[0] == "y_QuantizeLinear_Output"
    assert made["w"].op_type == made["b"].op_type == made["y"].op_type == "DequantizeLinear"
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(held["w_quantized"], encodings["w"].quantize(params["w"]))
    np.testing.assert_array_equal(held["b_quantized"], encodings["b"].quantize(params["b"]))
    assert held["b_quantized"].dtype == np.int32
    assert "w" not in held


def test_what_onnx_cannot_hold():
    graph, params, encodings, _ = _small(activation=Integer(16))
    with pytest.raises(UnsupportedError, match=r"'x': uint16 needs ONNX opset 21, not 17"):
        to_qdq(graph, params, encodings, opset=17)
    with pytest.raises(ConfigError, match="opset 13 is below the graph's own, 17"):
        to_qdq(graph, params, encodings, opset=13)
    odd = Encodings({"r": Encoding(Minifloat(3, 2, ieee=False, nan=False))})
    with pytest.raises(UnsupportedError, match="'r': ONNX has no type float6_e3m2fn"):
        to_qdq(graph, params, odd)
    with pytest.raises(ConfigError, match="no tensor 'rr'"):
        to_qdq(graph, params, Encodings({"rr": Encoding(FP16)}))


@pytest.mark.parametrize(
    "name, rules, share",
    [
        ("digits_resnet8_bn", (), 0.999),
        ("digits_mbv2_skew_bn", (Rule(role="weight", format="int4"),), 0.999),
    ],
)
def test_real_models_agree_with_the_simulation(data, name, rules, share):
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    graph, params = cleanup(*fold_bn(graph, params))
    images = np.load(data / "digits_32x32.npz")["x_test"][:512]
    (image,), (logits,) = graph.inputs, graph.outputs
    chosen = plan(graph, rules)
    apply = lower(graph)
    theta = calibrate(apply, params, chosen, [{image: images[:128]}])
    params, encodings = freeze(graph, params, bind(theta, chosen))
    run = jax.jit(lambda x: apply(params, thaw(encodings), {image: x})[logits])
    ours = np.asarray(run(images))
    model = to_qdq(graph, params, encodings)
    (theirs,) = ort_session(model, optimized=False).run([logits], {image: images})
    steps = np.abs(ours - theirs) / encodings[logits].scale
    assert (steps <= 1.01).mean() >= share
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= 0.99


def test_bodies_read_what_the_graph_around_them_quantized():
    """A body that captures a tensor sees its codes, as the simulation's bodies do."""
    graph, params, encodings, inputs = _small(activation=Integer(2))

    def body(name, *nodes):
        made = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([*nodes], name, [], [made])

    model = to_onnx(graph, params)
    (last,) = [n for n in model.graph.node if n.op_type == "Add"]
    model.graph.node.remove(last)
    left = body("left", node("Add", "r x", "left_out"))
    right = body("right", node("Sub", "r x", "right_out"))
    choose = helper.make_node("If", ["more"], ["y"], "choose", then_branch=left, else_branch=right)
    zero = numpy_helper.from_array(np.float32(0), "zero")
    model.graph.initializer.append(zero)
    total = node("ReduceSum", "x", "total", keepdims=0)
    model.graph.node.extend([total, node("Greater", "total zero", "more"), choose])
    graph, params, _ = import_onnx(model)
    assert [n.op for n in graph.nodes].count("If") == 1
    for sign in (1, -1):
        _, steps = _steps(graph, params, encodings, {"x": sign * inputs["x"]})
        assert steps.max() < 1e-3
