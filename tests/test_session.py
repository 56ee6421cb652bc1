"""Running a graph: programs per static value, the bits it needs, stages, tracing from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import parser

from jqnt.affine import fake_quant
from jqnt.errors import ConfigError, DataError, ModelError
from jqnt.graph.concrete import shape_inputs
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.precision import fits_32_bits, needs_64_bits
from jqnt.graph.session import session


def read(text):
    return import_onnx(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\n{text}'))


def opened(text):
    graph, params, _ = read(text)
    run = session(graph, params)
    return graph, params, lambda inputs, **kwargs: run(params, {}, inputs, **kwargs)


ADD64 = (
    "g (int64[N] x) => (int64[N] y) { one = Constant <value = int64[1] {1}> () y = Add (x, one) }"
)


def test_64_bit_integers_are_exact_and_leave_as_numpy():
    graph, params, run = opened(ADD64)
    assert needs_64_bits(graph, params)
    y = run({"x": np.asarray([2**40, -5])})["y"]
    assert isinstance(y, np.ndarray) and y.dtype == np.int64
    np.testing.assert_array_equal(y, [2**40 + 1, -4])
    assert run({"x": np.asarray([7], np.int32)})["y"].dtype == np.int64
    assert not jax.config.jax_enable_x64


def test_double_precision_is_kept():
    text = "g (double[N] x) => (double[N] y) { y = Exp (x) }"
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(opened(text)[2]({"x": x})["y"], np.exp(x), rtol=1e-15)


def test_values_traced_in_32_bits_may_not_enter_a_graph_of_64():
    _, _, run = opened(ADD64)
    with pytest.raises(DataError, match=r"enable_x64\(True\)"):
        jax.jit(lambda x: run({"x": x}))(jnp.ones(2, jnp.int32))
    with jax.enable_x64(True):
        y = jax.jit(lambda x: run({"x": x})["y"])(jnp.asarray([2**40]))
        assert int(y[0]) == 2**40 + 1


NARROW = {
    "float": "g (float[N] x) => (float[N] y) { y = Exp (x) }",
    "positions": """g (int64[N] x) => (float[N] y) {
        table = Constant <value = float[3] {5.0, 6.0, 7.0}> () y = Gather (table, x) }""",
    "mask": """g (int64[N] x, float[N] w) => (float[N] y) {
        zero = Constant <value_int: int = 0> () m = Equal (x, zero) y = Where (m, w, w) }""",
    "shape arithmetic": """g (float[N, M] x) => (float[K] y) {
        s = Shape (x) p = ReduceProd <keepdims = 1> (s) y = Reshape (x, p) }""",
    "arg": """g (float[N] x) => (float y) { i = ArgMax <axis = 0, keepdims = 0> (x)
        y = Gather (x, i) }""",
}
WIDE = {
    "output": "g (float[N] x) => (int64 y) { y = ArgMax <axis = 0, keepdims = 0> (x) }",
    "arithmetic": """g (int64[N] x) => (float[N] y) { s = Mul (x, x) y = Cast <to = 1> (s) }""",
    "cast of a float": """g (float[N] x) => (float[N] y) { i = Cast <to = 7> (x)
        y = Cast <to = 1> (i) }""",
    "double": "g (float[N] x) => (float[N] y) { d = Cast <to = 11> (x) y = Cast <to = 1> (d) }",
    "large constant": """g (int64[N] x) => (bool[N] y) {
        big = Constant <value_int: int = 5000000000> () y = Less (x, big) }""",
}


@pytest.mark.parametrize("name", NARROW)
def test_graphs_that_32_bits_serve(name):
    graph, params, _ = read(NARROW[name])
    assert not needs_64_bits(graph, params)


@pytest.mark.parametrize("name", WIDE)
def test_graphs_that_need_64_bits(name):
    graph, params, _ = read(WIDE[name])
    assert needs_64_bits(graph, params)


def test_values_that_do_not_fit_32_bits_widen_the_run():
    _, _, run = opened(NARROW["mask"])
    x, w = np.asarray([0, 2**32]), np.asarray([1.0, 2.0], np.float32)
    assert fits_32_bits(np.asarray([2**31 - 1, -(2**31)])) and not fits_32_bits(x)
    graph, params, run = opened(
        """g (int64[N] x, float[N] w) => (float[N] y) {
        zero = Constant <value_int: int = 0> () none = Constant <value_float: float = 0.0> ()
        m = Equal (x, zero) y = Where (m, w, none) }"""
    )
    assert not needs_64_bits(graph, params)
    np.testing.assert_array_equal(run({"x": x, "w": w})["y"], [1, 0])


def test_inputs_that_decide_a_shape_are_part_of_the_program():
    graph, _, run = opened(
        """g (float[N] x, int64[1] k) => (float[K] y) {
        two = Constant <value = int64[1] {2}> () most = Mul (k, two)
        y, i = TopK (x, most) }"""
    )
    assert shape_inputs(graph) == ("k",)
    x = np.asarray([3.0, 1.0, 2.0, 5.0], np.float32)
    for k in (1, 2, 1):
        found = run({"x": x, "k": np.asarray([k])})["y"]
        np.testing.assert_array_equal(found, np.sort(x)[::-1][: 2 * k])
    with pytest.raises(ModelError, match="must be a constant or a concrete input"):
        jax.jit(lambda k: run({"x": x, "k": k}))(jnp.asarray([1]))


STAGES = """
g (float[N] x, float[N] w) => (float[M, 1] y, float[N] double) {
  zero = Constant <value_float: float = 0.0> ()
  scaled = Mul (x, w)
  double = Add (scaled, scaled)
  mask = Greater (scaled, zero)
  where = NonZero (mask)
  places = Transpose <perm = [1, 0]> (where)
  picked = GatherND (scaled, places)
  shape = Shape (places)
  column = Reshape (picked, shape)
  y = Exp (column)
}"""


def test_operators_of_unknown_size_run_between_compiled_stages():
    _, _, run = opened(STAGES)
    rng = np.random.default_rng(0)
    for size in (5, 9):
        x, w = (rng.normal(size=size).astype(np.float32) for _ in range(2))
        found = run({"x": x, "w": w}, want=("y", "double", "mask"))
        both = x * w
        np.testing.assert_allclose(found["y"], np.exp(both[both > 0])[:, None], rtol=1e-6)
        np.testing.assert_allclose(found["double"], 2 * both, rtol=1e-6)
        np.testing.assert_array_equal(found["mask"], both > 0)


def test_stages_quantize_each_tensor_once():
    graph, params, _ = read(STAGES)
    run = session(graph, params)
    counted = []

    def twice(x):
        counted.append(x.shape)
        return 2 * x

    x = np.asarray([1.0, -2.0, 3.0], np.float32)
    quantizers = {"scaled": jax.tree_util.Partial(twice), "w": jax.tree_util.Partial(twice)}
    found = run(params, quantizers, {"x": x, "w": np.ones(3, np.float32)})
    np.testing.assert_allclose(found["y"], np.exp([[4.0], [12.0]]), rtol=1e-6)
    assert len(counted) == 2
    with pytest.raises(ConfigError, match="did you mean 'scaled'"):
        run(params, {"scale": fake_quant}, {"x": x, "w": x})


def test_a_session_may_be_traced():
    _, _, run = opened("g (float[N] x) => (float[N] y) { y = Mul (x, x) }")

    def total(x):
        return jnp.sum(run({"x": x})["y"])

    x = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(jax.grad(total)(x), 2 * x)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), 2 * x)
    np.testing.assert_allclose(jax.vmap(total)(jnp.ones((4, 3))), 3 * np.ones(4))


def test_minilm_runs_in_32_bits_and_silero_needs_64(data):
    for name, wide in (("minilm_l6_stsb", False), ("silero_vad_16k", True)):
        graph, params, _ = import_onnx(data / "models" / f"{name}.onnx")
        assert needs_64_bits(graph, params) is wide


def test_speech_is_detected_as_in_onnxruntime(data):
    ort = pytest.importorskip("onnxruntime")
    path = data / "models" / "silero_vad_16k.onnx"
    graph, params, _ = import_onnx(path)
    run = session(graph, params)
    reference = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    audio = np.load(data / "speech_16k.npz")["audio"].astype(np.float32) / 32768
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    context, rate = np.zeros((1, 64), np.float32), np.asarray(16000)
    for start in range(0, len(audio) - 511, 512):
        frame = np.concatenate([context, audio[None, start : start + 512]], axis=1)
        context = frame[:, -64:]
        wanted, theirs = reference.run(None, {"input": frame, "state": theirs, "sr": rate})
        found = run(params, {}, {"input": frame, "state": ours, "sr": rate})
        ours = found["stateN"]
        assert np.abs(found["output"] - wanted).max() <= 1e-4
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
