"""The interpreter: cuts, wanted tensors, quantizers, layouts, checks."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto
from onnx_graphs import model, node, reference

from jqnt.errors import ConfigError, DataError, ModelError
from jqnt.formats import Granularity
from jqnt.graph.layout import RENAMED, Laid, to_last, to_onnx
from jqnt.graph.lower import call, lower, run_node
from jqnt.graph.onnx_import import import_onnx
from jqnt.quantizers import Affine, Mixture, SoftRound
from jqnt.types import Array

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def small():
    """Two convolutions with everything around them that renames axes."""
    weights = {
        "w1": normal(4, 3, 3, 3), "b1": normal(4), "w2": normal(4, 4, 1, 1),
        "scale": normal(4, 1, 1), "half": np.array([0.5], np.float32),
        "to": np.array([0, -1]), "fc": normal(5, 8),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "a", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r", "relu"),
        node("Mul", "r scale", "m", "mul"),
        node("Conv", "m w2", "c", "conv2"),
        node("Add", "c r", "s", "add"),
        node("Concat", "s m", "k", "concat", axis=1),
        node("ReduceMean", "k", "p", "mean", axes=[2, 3], keepdims=1),
        node("Reshape", "p to", "f", "flat"),
        node("Gemm", "f fc", "y", "fc", transB=1),
    ]
    return model(nodes, {"x": ["N", 3, 6, 6]}, ["y"], weights)


@pytest.fixture(scope="module")
def built():
    proto = small()
    graph, params, _ = import_onnx(proto)
    return proto, graph, params


def test_agrees_with_onnxruntime_at_every_batch(built):
    proto, graph, params = built
    apply = jax.jit(lambda p, x: lower(graph)(p, {}, {"x": x})["y"])
    for batch in (1, 4):
        x = normal(batch, 3, 6, 6)
        np.testing.assert_allclose(
            apply(params, x), reference(proto, {"x": x})[0], rtol=1e-4, atol=1e-4
        )


def test_every_intermediate_comes_in_onnx_layout(built):
    proto, graph, params = built
    wanted = [name for n in graph.nodes for name in n.outputs]
    x = normal(2, 3, 6, 6)
    got = lower(graph)(params, {}, {"x": x}, want=wanted)
    for name in wanted:
        proto.graph.output.add().name = name
    proto.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    del proto.graph.output[0]
    for name, expected in zip(wanted, reference(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_cut_costs_and_needs_only_what_lies_between(built):
    _, graph, params = built
    x = normal(2, 3, 6, 6)
    whole = lower(graph)(params, {}, {"x": x}, want=("r", "s", "y"))
    cut = lower(graph, inputs=("r",), outputs=("s",))
    only = {name: params[name] for name in ("scale", "w2")}
    np.testing.assert_allclose(cut(only, {}, {"r": whole["r"]})["s"], whole["s"], rtol=1e-6)
    primitives = Counter(
        str(e.primitive) for e in jax.make_jaxpr(lambda r: cut(only, {}, {"r": r})["s"])(
            whole["r"]
        ).eqns
    )  # fmt: skip
    assert primitives["convolve"] == 1
    with pytest.raises(ConfigError, match="graph input 'x'"):
        lower(graph, inputs=("m",), outputs=("s",))
    with pytest.raises(ConfigError, match="no tensor 'rr'"):
        lower(graph, inputs=("rr",), outputs=("s",))


def int8(scale, axis=None):
    scale = jnp.asarray(scale, jnp.float32)
    granularity = Granularity(axis=axis)
    return Affine(scale, jnp.zeros_like(scale), jnp.float32(8), granularity=granularity)


def test_quantizers_see_inputs_params_and_outputs(built):
    _, graph, params = built
    x = normal(1, 3, 6, 6)
    apply = lower(graph)
    for name in ("x", "w1", "a", "y"):
        values = apply(params, {}, {"x": x}, want=(name,))[name]
        quantized = apply(params, {name: int8(0.05)}, {"x": x}, want=(name,))[name]
        expected = np.clip(np.rint(np.asarray(values) / np.float32(0.05)), -128, 127)
        np.testing.assert_allclose(quantized, expected * np.float32(0.05), rtol=1e-6)


QUANTIZERS = {
    "per channel": int8([0.1, 0.2, 0.3, 0.4], axis=1),
    "last axis": int8(np.linspace(0.1, 0.6, 6), axis=-1),
    "mixture": Mixture(jnp.array([0.3, 0.7]), (int8(0.1), int8([0.1, 0.2, 0.3, 0.4], axis=1))),
    "of the tensor's shape": SoftRound(
        jnp.float32(0.1), jnp.float32(0), jnp.float32(8), jnp.asarray(normal(1, 4, 6, 6))
    ),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantizer_sees_onnx_axes(built, kind):
    _, graph, params = built
    x = normal(1, 3, 6, 6)
    apply = lower(graph)
    plain = apply(params, {}, {"x": x}, want=("r",))["r"]
    got = apply(params, {"r": QUANTIZERS[kind]}, {"x": x}, want=("r",))["r"]
    np.testing.assert_allclose(got, QUANTIZERS[kind](jnp.asarray(plain)), rtol=1e-5, atol=1e-6)


def test_a_function_is_a_quantizer_too(built):
    _, graph, params = built
    x = normal(1, 3, 6, 6)
    seen = []

    def double(value: Array) -> Array:
        seen.append(value.shape)
        return value * 2

    got = lower(graph)(params, {"a": double}, {"x": x}, want=("a",))["a"]
    plain = lower(graph)(params, {}, {"x": x}, want=("a",))["a"]
    np.testing.assert_allclose(got, 2 * plain)
    assert seen == [(1, 4, 6, 6)]


def test_gradients_and_vmap(built):
    _, graph, params = built
    apply = lower(graph)
    params = jax.tree.map(jnp.asarray, params)
    x = jnp.asarray(normal(3, 3, 6, 6))

    def loss(params, x):
        return jnp.mean(apply(params, {}, {"x": x})["y"] ** 2)

    gradient = jax.grad(loss)(params, x)
    for name in ("w1", "b1", "scale", "fc"):
        index = tuple(0 for _ in params[name].shape)
        step = 1e-2
        moved = [
            loss({**params, name: params[name].at[index].add(sign * step)}, x) for sign in (1, -1)
        ]
        difference = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(gradient[name][index], difference, rtol=2e-2, atol=1e-4)
    per_example = jax.vmap(jax.grad(loss), (None, 0))(params, x[:, None])
    mean = jax.tree.map(lambda g: g.mean(0), per_example)
    for name, value in gradient.items():
        np.testing.assert_allclose(mean[name], value, rtol=1e-3, atol=1e-5)


# What is refused


BAD_INPUTS = [
    ({}, "no value for input 'x'"),
    ({"x": np.zeros((2, 3, 6), np.float32)}, "'x' has shape"),
    ({"x": np.zeros((2, 3, 5, 6), np.float32)}, "size 5 on axis 2, the model takes 6"),
    ({"x": np.zeros((2, 3, 6, 6), np.int32)}, "type int32"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS)
def test_bad_inputs(built, inputs, message):
    _, graph, params = built
    with pytest.raises(DataError, match=message):
        lower(graph)(params, {}, inputs)


def test_bad_names(built):
    _, graph, params = built
    x = {"x": normal(1, 3, 6, 6)}
    with pytest.raises(ConfigError, match="did you mean 'w1'"):
        lower(graph)(params, {"w11": int8(1.0)}, x)
    with pytest.raises(ConfigError, match="no tensor 'q'"):
        lower(graph)(params, {}, x, want=("q",))
    with pytest.raises(DataError, match="parameter 'fc'"):
        lower(graph)({k: v for k, v in params.items() if k != "fc"}, {}, x)


def test_symbols_must_agree():
    proto = model([node("Add", "x y", "z")], {"x": ["N", 2], "y": ["N", 2]}, ["z"])
    graph, _, _ = import_onnx(proto)
    with pytest.raises(DataError, match="'y' has size 3 on axis 0, the model takes 2"):
        lower(graph)({}, {}, {"x": normal(2, 2), "y": normal(3, 2)})


def test_a_frozen_batch_is_an_error_and_no_wrong_shape():
    nodes = [node("Reshape", "x to", "y", "frozen")]
    proto = model(nodes, {"x": ["N", 4]}, ["y"], {"to": np.array([1, -1])})
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "N"
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 4
    graph, _, _ = import_onnx(proto)
    assert lower(graph)({}, {}, {"x": normal(1, 4)})["y"].shape == (1, 4)
    with pytest.raises(ModelError, match="node 'frozen' has shape"):
        lower(graph)({}, {}, {"x": normal(2, 4)})


def test_a_node_that_fails_is_named():
    proto = model([node("Add", "x w", "y", "clash")], {"x": ["N", 4]}, ["y"], {"w": normal(3)})
    graph, params, _ = import_onnx(proto)
    with pytest.raises(ModelError, match=r"Add node 'clash'.*float32\[2, 4\]") as caught:
        lower(graph)(params, {}, {"x": normal(2, 4)})
    assert "\n" not in str(caught.value)


# Axes renamed


CASES = [
    node("Concat", "a b", "y", axis=1),
    node("Concat", "a b", "y", axis=-1),
    node("Split", "a", "y z", axis=1),
    node("Transpose", "a", "y", perm=[0, 2, 3, 1]),
    node("Transpose", "a", "y", perm=[1, 0, 3, 2]),
    node("Transpose", "a", "y"),
    node("ReduceMean", "a", "y", axes=[2, 3]),
    node("ReduceMean", "a", "y", axes=[1]),
    node("ReduceMax", "a", "y", axes=[1], keepdims=0),
    node("ReduceMax", "a", "y", axes=[-1, 2], keepdims=0),
    node("ReduceL2", "a", "y", axes=[0, 2, 3], keepdims=0),
    node("ReduceMin", "a", "y"),
    node("Pad", "a pads", "y"),
    node("Slice", "a from to", "y"),
    node("Slice", "a from to axes steps", "y"),
    node("Softmax", "a", "y", axis=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op_type}{len(c.attribute)}")
def test_renamed_axes_give_what_onnx_says(case):
    """Channels-last operands, against the same operator on ONNX's layout."""
    weights = {
        "pads": np.array([0, 1, 0, 2, 0, 0, 1, 0]),
        "from": np.array([1, 0]),
        "to": np.array([9, 2]),
        "axes": np.array([-1, 1]),
        "steps": np.array([2, 1]),
    }
    used = {k: v for k, v in weights.items() if k in case.input}
    shape = ["N", 4, 5, 6]
    inputs = {name: shape for name in case.input if name not in weights}
    graph, _, _ = import_onnx(model([case], inputs, list(case.output), used, opset=13))
    (found,) = graph.nodes
    values = [used[n] if n in used else jnp.asarray(normal(2, 4, 5, 6)) for n in found.inputs]
    expected = run_node(found, values)
    laid = [Laid(v) if isinstance(v, np.ndarray) else to_last(Laid(v)) for v in values]
    results = call(found, laid)
    for got, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(to_onnx(got).array, wanted, rtol=1e-6)
    assert case.op_type in RENAMED or not results[0].last


def test_products_are_float32_on_every_platform(built):
    """In the program for a GPU: forward and gradients ask for full precision, unless told less."""
    _, graph, params = built
    apply, inputs = lower(graph), {"x": normal(2, 3, 6, 6)}

    def loss(params):
        return jnp.sum(apply(params, {}, inputs)["y"] ** 2)

    def program():
        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    def products(text):
        return [
            line for line in text.splitlines() if "dot_general" in line or "convolution(" in line
        ]

    full = products(program())
    assert len(full) > 4 and all("HIGHEST" in line for line in full)
    with jax.default_matmul_precision("bfloat16"):
        fast = products(program())
    assert len(fast) == len(full) and not any("HIGH" in line for line in fast)
