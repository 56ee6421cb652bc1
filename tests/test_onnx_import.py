"""What an ONNX file becomes, and what is refused at the door."""

import jax
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import model, node, reference

from jqnt.errors import ModelError, UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.shapes import infer_shapes
from jqnt.thaw import thaw

FLOAT_MODELS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "digits_mbv2_bn",
    "digits_mbv2_folded",
    "digits_mbv2_skew_bn",
    "digits_mbv2_skew_folded",
    "digits_resnet8_bn",
    "digits_resnet8_folded",
    "imagenet_mobilenetv1_025",
    "imagenet_mobilenetv2_10",
    "ultraface_rfb320",
)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3)).astype(np.float32)


def gemm_model(**changes):
    parts = {
        "nodes": [node("Gemm", "x w b", "y", transB=1), node("Relu", "y", "z")],
        "inputs": {"x": ["N", 3]},
        "outputs": ["z"],
        "weights": {"w": W, "b": np.zeros(4, np.float32)},
    }
    return model(**{**parts, **changes})


@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_real_models_agree_with_onnxruntime(data, name):
    path = data / "models" / f"{name}.onnx"
    graph, params, encodings = import_onnx(path)
    assert not encodings
    apply = lower(graph)
    (x,) = graph.inputs
    shape = graph.info[x].shape
    # a free batch size; ultraface declares 1
    value = RNG.normal(size=[d if isinstance(d, int) else 3 for d in shape]).astype(np.float32)
    got = jax.jit(lambda p, v: apply(p, {}, {x: v}))(params, value)
    for output, expected in zip(graph.outputs, reference(str(path), {x: value}), strict=True):
        found = np.asarray(got[output])
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["digits_resnet8_bn", "digits_mbv2_folded"])
def test_gradients_of_real_models_are_finite_differences(data, name):
    """In float64, for a sample of weights of every kind."""
    graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {k: np.asarray(v, np.float64) for k, v in params.items()}
        constants = {
            k: v.astype(np.float64) if v.dtype == np.float32 else v
            for k, v in graph.constants.items()
        }
        apply = lower(graph.replace(constants=constants))
        x = {graph.inputs[0]: rng.normal(size=(2, 1, 32, 32))}
        loss = jax.jit(lambda p: jax.numpy.sum(jax.numpy.sin(apply(p, {}, x)[graph.outputs[0]])))
        gradient = jax.jit(jax.grad(loss))(params)
        assert all(np.isfinite(g).all() for g in gradient.values())
        for weight in list(params)[:: max(1, len(params) // 8)]:
            index = tuple(rng.integers(0, n) for n in params[weight].shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = params[weight].copy()
                moved[index] += step
                ends.append(loss({**params, weight: moved}))
            np.testing.assert_allclose(
                gradient[weight][index], (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-7
            )


def test_params_and_constants():
    nodes = [
        node("Constant", "", "shift", value=numpy_helper.from_array(W)),
        node("Constant", "", "low", value=numpy_helper.from_array(np.float32(0).reshape(()))),
        node("Constant", "", "shape", value_ints=[-1, 12]),
        node("Add", "x shift", "a"),
        node("Clip", "a low -", "b"),
        node("Reshape", "b shape", "y"),
    ]
    graph, params, _ = import_onnx(model(nodes, {"x": [4, 3]}, ["y"]))
    assert graph.params == ("shift",) and set(params) == {"shift"}
    assert set(graph.constants) == {"low", "shape"}
    assert [n.op for n in graph.nodes] == ["Add", "Clip", "Reshape"]
    assert graph.info["x"].shape == (4, 3)


def test_weights_listed_as_inputs_are_params():
    proto = gemm_model()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    graph, params, _ = import_onnx(proto)
    assert graph.inputs == ("x",) and set(params) == {"w", "b"}


def test_identity_of_an_initializer_is_a_copy():
    nodes = [
        node("Identity", "b", "b2"),
        node("Add", "x b", "a"),
        node("Add", "a b2", "y", "second"),
    ]
    bias = np.arange(3, dtype=np.float32)
    graph, params, _ = import_onnx(model(nodes, {"x": [2, 3]}, ["y"], {"b": bias}))
    assert set(params) == {"b", "b2"} and len(graph.nodes) == 2
    np.testing.assert_array_equal(params["b2"], bias)


def test_shape_arithmetic_of_constants_is_folded_and_of_batch_is_not():
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Mul", "two two", "four"),
        node("Unsqueeze", "n ax", "n1"),
        node("Concat", "n1 four", "to", axis=0),
        node("Reshape", "x to", "y"),
    ]
    weights = {"zero": np.int64(0), "two": np.array([2]), "ax": np.array([0])}
    weights = {k: np.asarray(v) for k, v in weights.items()}
    graph, params, _ = import_onnx(model(nodes, {"x": ["N", 2, 2]}, ["y"], weights))
    assert "Mul" not in [n.op for n in graph.nodes] and not params
    np.testing.assert_array_equal(graph.constants["four"], [4])
    for batch in (1, 5):
        x = RNG.normal(size=(batch, 2, 2)).astype(np.float32)
        out = lower(graph)({}, {}, {"x": x})["y"]
        np.testing.assert_array_equal(out, x.reshape(batch, 4))


def test_weights_of_constant_of_shape_take_no_memory():
    nodes = [
        node("ConstantOfShape", "s", "w", value=helper.make_tensor("v", 1, [1], [0.5])),
        node("MatMul", "x w", "y"),
    ]
    weights = {"s": np.array([3, 4])}
    graph, params, _ = import_onnx(model(nodes, {"x": [2, 3]}, ["y"], weights))
    assert graph.params == ("w",) and params["w"].shape == (3, 4)
    assert params["w"].strides == (0, 0)


def test_every_body_tensor_has_a_full_name():
    def branch(name, value):
        return helper.make_graph(
            [
                helper.make_node("Constant", [], ["k"], value_floats=[value, value]),
                helper.make_node("Add", ["x", "k"], ["out"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        )

    nodes = [node("If", "c", "y", "if", then_branch=branch("a", 1.0), else_branch=branch("b", 2.0))]
    proto = model(nodes, {"c": [], "x": [2]}, ["y"], types={"c": TensorProto.BOOL})
    graph, params, _ = import_onnx(proto)
    assert set(params) == {"if/then_branch/k", "if/else_branch/k"}
    x = np.ones(2, np.float32)
    for c in (True, False):
        expected = reference(proto, {"c": np.array(c), "x": x})[0]
        got = lower(graph)(params, {}, {"c": np.array(c), "x": x})["y"]
        np.testing.assert_array_equal(got, expected)


def broken(change):
    proto = gemm_model()
    change(proto)
    return proto


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        import_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(200), b"\x08\x08"])
def test_bytes_that_are_no_model(content):
    with pytest.raises(ModelError, match="not an ONNX model"):
        import_onnx(content)


def test_truncated_file():
    content = gemm_model().SerializeToString()
    with pytest.raises(ModelError):
        import_onnx(content[: len(content) // 2])


def unknown_input(proto):
    proto.graph.node[0].input[0] = "xx"


def cycle(proto):
    proto.graph.node[0].input[0] = "z"


def twice(proto):
    proto.graph.node[1].output[0] = "y"


def twice_initializer(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])


def no_output(proto):
    proto.graph.output[0].name = "q"


def short_weight(proto):
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def huge_weight(proto):
    proto.graph.initializer[0].dims[:] = [2**31, 2**31]


def negative_weight(proto):
    proto.graph.initializer[0].dims[0] = -4


def nan_weight(proto):
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(W * np.nan, "w"))


def inf_weight(proto):
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(W + np.inf, "w"))


def external_weight(proto):
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL


def unknown_domain(proto):
    proto.graph.node[0].domain = "com.example"


BROKEN = [
    (unknown_input, "'the_Gemm'.*reads tensor 'xx'"),
    (cycle, "cycle"),
    (twice, "'y' is made twice"),
    (twice_initializer, "'w' is made twice"),
    (no_output, "output 'q' is made by no node"),
    (short_weight, "initializer 'w'.*needs 48 bytes, the file holds 44"),
    (huge_weight, "'w' claims"),
    (negative_weight, "'w' has a negative dimension"),
    (nan_weight, "'w' holds NaN"),
    (inf_weight, "'w' holds NaN or infinity"),
    (external_weight, "'w' lies in the external file"),
    (unknown_domain, "domain 'com.example'"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[c.__name__ for c, _ in BROKEN])
def test_broken_models(change, message):
    with pytest.raises(ModelError, match=message):
        import_onnx(broken(change))


def test_infinity_may_mask():
    mask = np.array([0, -np.inf, 0], np.float32)
    graph, params, _ = import_onnx(
        model([node("Add", "x m", "y")], {"x": [2, 3]}, ["y"], {"m": mask})
    )
    assert not params and "m" in graph.constants


def test_unsupported_operators_come_in_one_error():
    nodes = [
        node("Reluu", "x", "a", "first"),
        node("Frobnicate", "a", "b", "second"),
        node("Reluu", "b", "y", "third"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(model(nodes, {"x": [1]}, ["y"]))
    text = str(caught.value)
    assert all(word in text for word in ("'first'", "'third'", "'second'", "Frobnicate", "Relu"))
    assert "\n" not in text


def test_opset_beyond_the_known():
    with pytest.raises(UnsupportedError, match="opset 999"):
        import_onnx(gemm_model(opset=999))


@pytest.mark.parametrize(
    ("location", "length", "message"),
    [
        ("w.bin", 48, None),
        ("../w.bin", 48, "outside"),
        ("/etc/hostname", 48, "outside"),
        ("none.bin", 48, "not beside the model"),
        ("w.bin", 4800, "needs 48 bytes"),
        ("w.bin", -1, "needs 48 bytes"),
    ],
)
def test_external_data(tmp_path, location, length, message):
    proto = gemm_model()
    weight = proto.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", 0), ("length", length)):
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    if message is None:
        _, params, _ = import_onnx(tmp_path / "m.onnx")
        np.testing.assert_array_equal(params["w"], W)
    else:
        with pytest.raises(ModelError, match=message):
            import_onnx(tmp_path / "m.onnx")


def test_external_data_behind_a_link(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    proto = gemm_model()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "w.bin"
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        import_onnx(folder / "m.onnx")


def grown(first):
    """`first`, repeated a hundredfold eight times over: no node of them beyond reason."""
    chain = [node("Tile", f"{first if i == 0 else f't{i}'} r", f"t{i + 1}") for i in range(8)]
    weights = {"r": np.array([100]), "c": np.arange(2)}
    return [*chain, node("Cast", "t8", "f", to=1), node("Add", "x f", "y")], weights


def window():
    weights = {"n": np.array(2**34)}
    return [node("HannWindow", "n", "w"), node("Add", "x w", "y")], weights


def filled():
    weights = {"s": np.array([2**34])}
    return [
        node("ConstantOfShape", "s", "w"),
        node("Relu", "w", "r"),
        node("Add", "x r", "y"),
    ], weights


def looped():
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", "v v", "v2"), node("Identity", "c", "c2"), node("Identity", "v", "o")],
        "body",
        [info("i", 7, []), info("c", 9, []), info("v", 1, [2])],
        [info("c2", 9, []), info("v2", 1, [2]), info("o", 1, [2])],
    )
    weights = {"m": np.array(2**40), "t": np.array(True)}
    return [node("Loop", "m t x", "v y", body=body)], weights


def sparse():
    constant = helper.make_node("Constant", [], ["s"], "sparse")
    value = constant.attribute.add(name="sparse_value", type=11).sparse_tensor
    value.dims[:] = [2**28]
    value.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    value.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    return [constant, node("Add", "x s", "y")], {}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (sparse(), "sparse tensor of the impossible shape"),
        (grown("c"), "Tile node .* claims 0.7 GiB"),
        (grown("x"), "Tile node .* claims 0.7 GiB"),
        (window(), "HannWindow node .* claims 64.0 GiB"),
        (filled(), "ConstantOfShape node .* 64.0 GiB"),
        (looped(), "runs 1099511627776 times"),
    ],
    ids=["sparse", "constants", "data", "window", "fill", "loop"],
)
def test_a_small_file_allocates_no_gigabytes(parts, message):
    nodes, weights = parts
    content = model(nodes, {"x": [2]}, ["y"], weights).SerializeToString()
    assert len(content) < 1024
    with pytest.raises(ModelError, match=message):
        graph, params, _ = import_onnx(content)
        lower(graph)(params, {}, {"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(("levels", "message"), [(26, "nodes once inlined"), (1, "[Cc]ycle")])
def test_functions_do_not_multiply_without_end(levels, message):
    """Each calls the one below twice; the lowest one a Relu, or itself."""
    functions = []
    for i in range(levels):
        callee = f"f{max(i - 1, 0)}"
        body = [node(callee, "a", "t"), node(callee, "t", "b")]
        for call in body:
            call.domain = "my"
        if i == 0 and levels > 1:
            body = [node("Relu", "a", "b")]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        functions.append(helper.make_function("my", f"f{i}", ["a"], ["b"], body, imports))
    call = node(f"f{levels - 1}", "x", "y")
    call.domain = "my"
    proto = model([call], {"x": [3]}, ["y"])
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.functions.extend(functions)
    with pytest.raises(ModelError, match=message):
        import_onnx(proto)


def test_nodes_out_of_order_are_sorted():
    proto = gemm_model()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    graph, _, _ = import_onnx(proto)
    assert [n.op for n in graph.nodes] == ["Gemm", "Relu"]


def test_local_functions_are_inlined():
    function = helper.make_function(
        "my", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = helper.make_node("Twice", ["x"], ["y"], domain="my")
    proto = model([call], {"x": [3]}, ["y"])
    proto.opset_import.append(helper.make_opsetid("my", 1))
    proto.functions.append(function)
    graph, params, _ = import_onnx(proto)
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(lower(graph)(params, {}, {"x": x})["y"], 2 * x)


def test_shapes_of_every_tensor():
    graph, params, _ = import_onnx(gemm_model())
    shapes = infer_shapes(graph, params, batch=7)
    assert {n: s.shape for n, s in shapes.items()} == {
        "x": (7, 3), "w": (4, 3), "b": (4,), "y": (7, 4), "z": (7, 4),
    }  # fmt: skip


# Quantized models


def qdq_model(out_grid=(0.05, 3), shared=False):
    codes = RNG.integers(-127, 128, (4, 3)).astype(np.int8)
    weights = {
        "sx": np.float32(0.02), "zx": np.uint8(128),
        "w_q": codes, "sw": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "zw": np.zeros(4, np.int8),
        "b_q": np.array([2**30 + 1, -5, 7, 123456789], np.int32),
        "sb": np.array([2e-4, 4e-4, 6e-4, 8e-4], np.float32),
        "zb": np.zeros(4, np.int32),
        "sy": np.float32(out_grid[0]), "zy": np.uint8(out_grid[1]),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x sx zx", "x_q", "qx"),
        node("DequantizeLinear", "x_q sx zx", "x_d", "dx"),
        node("DequantizeLinear", "w_q sw zw", "w", "dw", axis=0),
        node("DequantizeLinear", "b_q sb zb", "b", "db", axis=0),
        node("Gemm", "x_d w b", "y", "gemm", transB=1),
        node("QuantizeLinear", "y sy zy", "y_q", "qy"),
        node("DequantizeLinear", "y_q sy zy", "y_d", "dy"),
        node("Relu", "y_d", "z", "relu"),
    ]
    outputs = ["z"]
    if shared:
        nodes.append(node("Sigmoid", "y", "raw", "sigmoid"))
        outputs.append("raw")
    weights = {k: np.asarray(v) for k, v in weights.items()}
    return model(nodes, {"x": ["N", 3]}, outputs, weights), codes


def test_qdq_pairs_become_encodings():
    proto, codes = qdq_model()
    graph, params, encodings = import_onnx(proto)
    assert [n.op for n in graph.nodes] == ["Gemm", "Relu"]
    assert set(encodings) == {"x", "w", "b", "y"} and set(params) == {"w", "b"}
    assert encodings["w"].format == Integer(8, signed=True)
    assert encodings["w"].granularity.axis == 0
    np.testing.assert_array_equal(encodings["w"].quantize(params["w"]), codes)
    np.testing.assert_array_equal(encodings.codes["b"], [2**30 + 1, -5, 7, 123456789])


@pytest.mark.parametrize("shared", [False, True])
def test_qdq_simulation_agrees_with_onnxruntime(shared):
    proto, _ = qdq_model(shared=shared)
    graph, params, encodings = import_onnx(proto)
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    got = lower(graph)(params, thaw(encodings), {"x": x})
    for name, expected in zip(graph.outputs, reference(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)
    assert ("Identity" in [n.op for n in graph.nodes]) == shared


def test_qdq_nodes_can_stay_and_lone_ones_do():
    proto, _ = qdq_model()
    graph, params, encodings = import_onnx(proto, qdq="nodes")
    assert len(graph.nodes) == 8 and not encodings and not params
    nodes = [node("QuantizeLinear", "x s z", "q"), node("Relu", "q", "y")]
    weights = {"s": np.asarray(np.float32(1)), "z": np.asarray(np.uint8(0))}
    lone = model(nodes[:1], {"x": [3]}, ["q"], weights, types={"q": TensorProto.UINT8})
    graph, _, encodings = import_onnx(lone)
    assert [n.op for n in graph.nodes] == ["QuantizeLinear"] and not encodings


def test_qdq_scale_must_be_positive():
    proto, _ = qdq_model(out_grid=(0.0, 3))
    with pytest.raises(ModelError, match="'sy' is not positive"):
        import_onnx(proto)


def test_requantization_keeps_both_grids():
    nodes = [
        node("QuantizeLinear", "x s z", "a", "q1"),
        node("DequantizeLinear", "a s z", "b", "d1"),
        node("QuantizeLinear", "b t z", "c", "q2"),
        node("DequantizeLinear", "c t z", "y", "d2"),
    ]
    weights = {"s": np.float32(0.1), "t": np.float32(0.25), "z": np.uint8(100)}
    proto = model(nodes, {"x": [64]}, ["y"], {k: np.asarray(v) for k, v in weights.items()})
    graph, params, encodings = import_onnx(proto)
    x = RNG.normal(size=64).astype(np.float32) * 5
    got = lower(graph)(params, thaw(encodings), {"x": x})["y"]
    # in numpy: onnxruntime drops the first of two such pairs, against the specification
    for scale in (np.float32(0.1), np.float32(0.25)):
        x = (np.clip(np.rint(x / scale) + 100, 0, 255) - 100).astype(np.float32) * scale
    np.testing.assert_allclose(got, x, rtol=1e-6)


def test_qdq_scales_must_fit_their_axis():
    proto, _ = qdq_model()
    proto.graph.node[2].attribute[0].i = 1
    with pytest.raises(ModelError, match=r"'dw': scales of shape \[4\] on axis 1 do not fit"):
        import_onnx(proto)
