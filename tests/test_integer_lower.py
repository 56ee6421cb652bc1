"""Whole networks on integers: real models, mixed formats, wide accumulators, wrong input."""

import jax
import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import FP16, Integer
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.integer import lower as lower_integers
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.interop.onnx_qop import to_qoperator
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.rules import Rule
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from tests.built import node
from tests.quantized_case import S8, U8, WEIGHT, case, encoded, ort_session

W8 = (Rule(role="weight", format=WEIGHT.name),)
W4 = (Rule(role="weight", format="int4"),)


def _images(data, name):
    """(512 images, 128 of them to calibrate)."""
    if name.startswith("digits"):
        return np.load(data / "digits_32x32.npz")["x_test"][:512]
    images = np.load(data / "cifar10_jpeg_5000.npz")["eval_images"][:512]
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    scaled = (images / np.float32(255) - mean) / deviation
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _frozen(data, name, rules=W8):
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    graph, params = cleanup(*fold_bn(graph, params))
    images = _images(data, name)
    chosen = plan(graph, rules)
    theta = calibrate(lower(graph), params, chosen, [{graph.inputs[0]: images[:128]}])
    return graph, *freeze(graph, params, bind(theta, chosen)), images


@pytest.mark.parametrize(
    "name, rules",
    [("cifar10_resnet20", W8), ("digits_mbv2_skew_bn", W8), ("digits_mbv2_skew_bn", W4)],
    ids=["resnet20", "mbv2", "mbv2 W4A8"],
)
def test_every_logit_is_onnxruntimes(data, name, rules):
    graph, params, encodings, images = _frozen(data, name, rules)
    (image,), (logits,) = graph.inputs, graph.outputs
    ours = np.asarray(lower_integers(graph, params, encodings)({image: images})[logits])
    model = to_qoperator(graph, params, encodings)
    for optimized in (True, False):
        (theirs,) = ort_session(model, optimized).run([logits], {image: images})
        assert (ours != theirs).sum() == 0
    assert len(np.unique(ours)) > 20


CONV = [node("Conv", "x w b", "c", pads=[1] * 4), node("Relu", "c", "y")]


def _conv(**grids):
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(2, 40, 6, 6)).astype(np.float32)}
    params = {"w": rng.normal(size=(8, 40, 3, 3)), "b": rng.normal(size=8)}
    graph, params = case(CONV, inputs, ["y"], params)
    return graph, params, encoded(graph, params, inputs, ["y"], **grids), inputs


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_sixteen_bit_activations_do_not_wrap(signed, bits):
    """int64 numpy; the inputs sit at the ends of the grid, so that 32 bits would overflow."""
    wide = Integer(16, signed=signed)
    graph, params, encodings, _ = _conv(activation=wide, weight=Integer(bits, signed=True))
    low, high = wide.limits
    x = Encoding(wide, encodings["x"].scale, np.int64(low))
    encodings = Encodings({**encodings.tensors, "x": x})
    w, y = encodings["w"], encodings["y"]
    codes = np.random.default_rng(1).integers(low, high + 1, (2, 40, 6, 6))
    codes[0] = high
    weight = w.quantize(np.asarray(params["w"]))
    weight[0], weight[1] = w.format.limits[1], -w.format.limits[1]
    params["w"] = w.dequantize(weight)
    inputs = {"x": codes.astype(np.int16 if signed else np.uint16)}
    run = lower_integers(graph, params, encodings)
    ours = np.asarray(run({"x": x.dequantize(codes)}, integers=True)["y"])
    padded = np.pad(codes - x.zero_point, ((0, 0), (0, 0), (1, 1), (1, 1)))
    bias = encodings["b"].quantize(np.asarray(params["b"]))
    total = sum(
        np.einsum("ncij,oc->noij", padded[:, :, i : i + 6, j : j + 6], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ) + bias.reshape(1, -1, 1, 1)
    assert bits == 4 or np.abs(total).max() > 2**31
    scale = ((x.scale * w.scale) / y.scale).reshape(1, -1, 1, 1)
    exact = np.rint(total.astype(np.float32) * scale).astype(np.float64) + y.zero_point
    np.testing.assert_array_equal(ours, np.clip(exact, max(y.zero_point, low), high))
    assert ours.dtype == inputs["x"].dtype


def test_a_channel_whose_zero_is_its_lowest_code():
    """Weights less their zero point reach 255, which int8 products take in three pieces."""
    rng = np.random.default_rng(2)
    inputs = {"x": np.abs(rng.normal(size=(2, 3, 6, 6))).astype(np.float32)}
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    w[1] = np.abs(w[1])
    graph, params = case([node("Conv", "x w", "y")], inputs, ["y"], {"w": w})
    chosen = plan(graph, (Rule(symmetric="one_sided"),))
    theta = calibrate(lower(graph), params, chosen, [inputs])
    assert theta["w"].zero_point.tolist() == [0, -128, 0, 0] and float(theta["x"].zero_point) == 0
    params, encodings = freeze(graph, params, bind(theta, chosen))
    ours = np.asarray(lower_integers(graph, params, encodings)(inputs)["y"])
    (theirs,) = ort_session(to_qdq(graph, params, encodings), False).run(["y"], inputs)
    np.testing.assert_allclose(ours, theirs, atol=1.001 * float(encodings["y"].scale))
    assert (ours == theirs).mean() > 0.99


def test_any_tensor_as_codes_or_as_floats():
    graph, params, encodings, inputs = _conv()
    run = lower_integers(graph, params, encodings)
    codes = run(inputs, want=("x", "y"), integers=True)
    floats = run(inputs, want=("x", "y"))
    for name in ("x", "y"):
        assert codes[name].dtype == np.uint8
        expected = encodings[name].dequantize(np.asarray(codes[name], np.int64))
        np.testing.assert_array_equal(np.asarray(floats[name]), expected)
    np.testing.assert_array_equal(np.asarray(codes["x"]), encodings["x"].quantize(inputs["x"]))


def test_it_can_be_traced_and_batched():
    graph, params, encodings, inputs = _conv()
    run = lower_integers(graph, params, encodings)
    expected = np.asarray(run(inputs)["y"])
    jitted = jax.jit(lambda x: run({"x": x})["y"])
    np.testing.assert_array_equal(np.asarray(jitted(inputs["x"])), expected)
    batches = np.stack([inputs["x"], inputs["x"][::-1]])
    both = np.asarray(jax.vmap(jitted)(batches))
    np.testing.assert_array_equal(both, np.stack([expected, expected[::-1]]))


CHAIN = [
    node("Conv", "x w", "a"),
    node("Relu", "a", "r"),
    node("Conv", "r v", "c"),
    node("Add", "c x", "y"),
]


@pytest.mark.parametrize(
    "changed", [{"c": FP16}, {"r": FP16, "v": FP16}, {"r": None, "v": None}], ids=str
)
def test_what_the_plan_leaves_in_float_runs_in_that_format(changed):
    """Against the simulation, which quantizes the same tensors in float."""
    rng = np.random.default_rng(2)
    inputs = {"x": rng.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    params = {n: rng.normal(size=(4, 4, 1, 1)) for n in "wv"}
    graph, params = case(CHAIN, inputs, ["y"], params)
    tensors = dict(encoded(graph, params, inputs, ["r", "c", "y"]).tensors)
    for name, fmt in changed.items():
        tensors.pop(name)
        if fmt is not None:
            tensors[name] = Encoding(fmt)
    encodings = Encodings(tensors)
    ours = np.asarray(lower_integers(graph, params, encodings)(inputs)["y"])
    simulated = np.asarray(lower(graph)(params, thaw(encodings), inputs)["y"])
    steps = np.abs(ours - simulated) / encodings["y"].scale
    assert steps.max() <= 1.01
    assert (steps < 0.01).mean() > 0.97


def test_mixed_widths_meet_at_one_operator():
    rng = np.random.default_rng(3)
    inputs = {"x": rng.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    params = {n: rng.normal(size=(4, 4, 1, 1)) for n in "wv"}
    graph, params = case(CHAIN, inputs, ["y"], params)
    wide = encoded(graph, params, inputs, ["r", "c", "y"], activation=Integer(16))
    narrow = encoded(graph, params, inputs, ["r", "c", "y"], weight=Integer(4, signed=True))
    encodings = Encodings({**narrow.tensors, "r": wide["r"], "y": wide["y"]})
    ours = np.asarray(lower_integers(graph, params, encodings)(inputs)["y"])
    simulated = np.asarray(lower(graph)(params, thaw(encodings), inputs)["y"])
    assert np.abs(ours - simulated).max() <= encodings["c"].scale * 1.01


def test_nodes_without_a_kernel_are_named():
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
    nodes = [node("Softmax", "x", "s"), node("Neg", "s", "y")]
    graph, params = case(nodes, inputs, ["y"], {})
    encodings = encoded(graph, params, inputs, ["y"])
    with pytest.raises(UnsupportedError, match=r"Softmax 'n_s', Neg 'n_y' between 'x' and 'y'"):
        lower_integers(graph, params, encodings)
    run = lower_integers(graph, params, encodings, unmatched="float")
    simulated = lower(graph)(params, thaw(encodings), inputs)["y"]
    np.testing.assert_allclose(np.asarray(run(inputs)["y"]), np.asarray(simulated), atol=1e-6)


def test_wrong_requests():
    graph, params, encodings, inputs = _conv()
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime'"):
        lower_integers(graph, params, encodings, "onnxruntim")
    run = lower_integers(graph, params, encodings)
    with pytest.raises(ConfigError, match="'c' has no encoding and is fused"):
        run(inputs, want=("c",))
    with pytest.raises(ConfigError, match="no tensor 'z'"):
        run(inputs, want=("z",))


def test_signed_and_unsigned_grids_agree():
    """The same reals on int8 and uint8: codes differ by 128, nothing else."""
    graph, params, encodings, inputs = _conv(activation=U8)
    signed = {
        name: Encoding(S8, e.scale, e.zero_point - 128) if e.format == U8 else e
        for name, e in encodings.items()
    }
    first = np.asarray(lower_integers(graph, params, encodings)(inputs)["y"])
    second = np.asarray(lower_integers(graph, params, Encodings(signed))(inputs)["y"])
    np.testing.assert_array_equal(first, second)
