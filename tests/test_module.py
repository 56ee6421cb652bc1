"""The Flax face: state, transformations, checkpoints, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from onnx import TensorProto
from onnx_graphs import model, node, reference

from jqnt.errors import ConfigError, DataError, ModelError
from jqnt.graph.onnx_import import import_onnx
from jqnt.module import Model, QuantConst, QuantParam, load, qparams
from jqnt.quantizers import Affine, Mixture

RNG = np.random.default_rng(4)
NAMES = ("/a/b", "a/b", "a.b", "onnx::Add_1", "../x", "items", " ")


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def chain():
    """x plus one weight after another, under names that a path or an attribute could trip over."""
    nodes = [node("Add", f"t{i} w{i}", f"t{i + 1}", f"add{i}") for i in range(len(NAMES))]
    for i, name in enumerate(NAMES):
        nodes[i].input[1] = name
    weights = {name: normal(3) for name in NAMES}
    return model(nodes, {"t0": ["N", 3]}, [f"t{len(NAMES)}"], weights)


@pytest.fixture(scope="module")
def proto():
    weights = {"w": normal(4, 2, 3, 3), "b": normal(4), "fc": normal(5, 4)}
    nodes = [
        node("Conv", "x w b", "c", "conv", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc", "y", transB=1),
    ]
    return model(nodes, {"x": ["N", 2, 5, 5]}, ["y"], weights)


def test_call_and_state(proto):
    net = load(proto)
    x = normal(3, 2, 5, 5)
    y = net(x)
    np.testing.assert_allclose(y, reference(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)
    state = nnx.state(net, nnx.Param)
    assert {path[-1] for path, _ in nnx.to_flat_state(state)} == {"w", "b", "fc"}
    definition, state = nnx.split(net)
    merged = nnx.merge(definition, state)
    np.testing.assert_array_equal(merged(x), y)
    before = np.asarray(net.params["fc"].get_value())
    doubled = jax.tree.map(lambda leaf: 2 * leaf, nnx.state(net, nnx.Param))
    nnx.update(merged, doubled)
    np.testing.assert_array_equal(merged.params["fc"].get_value(), 2 * before)
    assert not np.allclose(merged(x), y)


def test_jax_transformations_of_the_module(proto):
    net = load(proto)
    x = normal(3, 2, 5, 5)
    y = np.asarray(net(x))
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(net, x), y, rtol=1e-5)
    each = jax.vmap(lambda m, x: m(x[None])[0], (None, 0))(net, x)
    np.testing.assert_allclose(each, y, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda m: jnp.sum(m(x)))(net)
    # y = fc . mean(...), so each row of d sum(y) / d fc is the pooled activation, summed over x
    pooled = load(proto)
    rows = np.asarray(gradient.params["fc"].get_value())
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], rows.shape), rtol=1e-5)
    again = nnx.jit(nnx.grad(lambda m: jnp.sum(m(x))))(pooled)
    np.testing.assert_allclose(again.params["fc"].get_value(), rows, rtol=1e-5)


def test_tabulate_shows_the_parameters(proto):
    table = nnx.tabulate(load(proto), normal(1, 2, 5, 5), console_kwargs={"width": 120})
    assert "Model" in table and f"{4 * 2 * 9 + 4 + 20}" in table


def test_any_name_survives_a_checkpoint(tmp_path):
    net = load(chain())
    x = normal(2, 3)
    definition, state = nnx.split(net)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", state)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = checkpointer.restore(tmp_path / "saved", shapes)
    other = nnx.merge(definition, restored)
    np.testing.assert_array_equal(other(x), net(x))
    for name in NAMES:
        np.testing.assert_array_equal(other.params[name].get_value(), net.params[name].get_value())


def grid(scale, bits=8.0):
    return Affine(jnp.float32(scale), jnp.float32(0), jnp.float32(bits))


def test_quantizers_are_variables(proto):
    graph, params, _ = import_onnx(proto)
    mixture = Mixture(jnp.array([0.5, 0.5]), (grid(0.5), grid(0.25)))
    net = Model(graph, params, {"x": grid(0.1), "w": mixture})
    x = normal(2, 2, 5, 5)
    trained = nnx.to_flat_state(nnx.state(net, QuantParam))
    fixed = nnx.to_flat_state(nnx.state(net, QuantConst))
    assert {path[-2:] for path, _ in trained} == {
        ("x", "scale"), ("w", "probability"), ("w", "branches.0.scale"), ("w", "branches.1.scale"),
    }  # fmt: skip
    assert {path[-1].rpartition(".")[2] for path, _ in fixed} == {"zero_point", "bits"}
    rounded = np.clip(np.rint(x / np.float32(0.1)), -128, 127) * np.float32(0.1)
    np.testing.assert_allclose(
        net(x), Model(graph, params, {"w": mixture})(rounded), rtol=1e-4, atol=1e-5
    )
    assert jax.tree.structure(qparams(net)["w"]) == jax.tree.structure(mixture)
    loss, gradient = nnx.value_and_grad(
        lambda m: jnp.mean(m(x) ** 2), argnums=nnx.DiffState(0, QuantParam)
    )(net)
    assert np.isfinite(loss) and all(
        np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(gradient)
    )


def test_a_quantized_file_comes_with_its_quantizers():
    weights = {"s": np.float32(0.25), "z": np.uint8(7)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Relu", "d", "y"),
    ]
    proto = model(nodes, {"x": [4]}, ["y"], {k: np.asarray(v) for k, v in weights.items()})
    net = load(proto)
    assert set(qparams(net)) == {"x"}
    x = normal(4)
    np.testing.assert_allclose(net(x), reference(proto, {"x": x})[0], rtol=1e-6)


def test_several_outputs_and_64_bits():
    nodes = [node("Relu", "x", "y"), node("Add", "i i", "j")]
    types = {"i": TensorProto.INT64, "j": TensorProto.INT64}
    net = load(model(nodes, {"x": [2], "i": [2]}, ["y", "j"], types=types))
    y, j = net(np.array([-1, 1], np.float32), np.array([2**40, 1]))
    np.testing.assert_array_equal(y, [0, 1])
    assert j.dtype == np.int64
    np.testing.assert_array_equal(j, [2**41, 2])


def test_what_is_refused(proto, tmp_path):
    with pytest.raises(DataError, match="2 inputs for graph 'test', which takes 1: x"):
        load(proto)(normal(1, 2, 5, 5), normal(1))
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
    graph, params, _ = import_onnx(proto)
    with pytest.raises(ConfigError, match="no tensor 'xx'"):
        Model(graph, params, {"xx": grid(1.0)})
