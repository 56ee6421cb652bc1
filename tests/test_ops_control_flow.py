"""If, Loop and Scan: decided, written out, scanned or repeated; against plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import parser

from jqnt.errors import ModelError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session


def read(text):
    return import_onnx(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\n{text}'))


def run(text, inputs):
    graph, params, _ = read(text)
    results = session(graph, params)(params, {}, inputs)
    return [np.asarray(results[name]) for name in graph.outputs]


BRANCHES = """
g (float[N] x) => (float[M] y) {
  zero = Constant <value_float: float = 0.0> ()
  total = ReduceSum <keepdims = 0> (x)
  positive = Greater (total, zero)
  y = If (positive) <
    then_branch = a () => (float[M] t) { t = Mul (x, x) },
    else_branch = b () => (float[M] e) { ELSE }
  >
}"""


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_is_chosen_by_data(sign):
    x = sign * np.arange(1.0, 4.0, dtype=np.float32)
    (y,) = run(BRANCHES.replace("ELSE", "e = Neg (x)"), {"x": x})
    np.testing.assert_array_equal(y, x * x if sign > 0 else -x)


def test_branches_chosen_by_data_must_agree_in_shape():
    text = BRANCHES.replace("ELSE", "e = Concat <axis = 0> (x, x)")
    with pytest.raises(ModelError, match="must agree"):
        run(text, {"x": np.ones(3, np.float32)})


def test_branches_of_any_shape_are_chosen_by_a_scalar_input():
    text = """
    g (float[N] x, bool which) => (float[M] y) {
      y = If (which) <
        then_branch = a () => (float[M] t) { t = Concat <axis = 0> (x, x) },
        else_branch = b () => (float[M] e) { e = Neg (x) }
      >
    }"""
    x = np.ones(3, np.float32)
    (twice,) = run(text, {"x": x, "which": np.asarray(True)})
    (once,) = run(text, {"x": x, "which": np.asarray(False)})
    assert twice.shape == (6,) and once.shape == (3,)


LOOP = """
g (float[2] x, int64 count) => (float[2] last, float[N, 2] all) {
  yes = Constant <value = bool {1}> ()
  last, all = Loop (count, yes, x) <
    body = b (int64 i, bool going, float[2] s) => (bool on, float[2] t, float[2] row) {
      on = Identity (going)
      j = Cast <to = 1> (i)
      t = Add (s, j)
      row = Mul (t, s)
    }
  >
}"""


@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 40])
def test_a_loop_of_known_count_is_written_out_or_scanned(count):
    x = np.asarray([1.0, -2.0], np.float32)
    last, every = run(LOOP, {"x": x, "count": np.asarray(count)})
    state, rows = x, []
    for i in range(count):
        after = state + np.float32(i)
        rows.append(after * state)
        state = after
    np.testing.assert_allclose(last, state)
    np.testing.assert_allclose(every, np.asarray(rows, np.float32).reshape(count, 2))


def test_a_long_loop_is_one_scan():
    graph, params, _ = read(LOOP)
    apply = lower(graph)
    inputs = {"count": np.asarray(1000)}
    text = str(jax.make_jaxpr(lambda x: apply(params, {}, {"x": x, **inputs}))(jnp.ones(2)))
    assert "scan" in text and len(text.splitlines()) < 60


GROWING = """
g (float[N] x, int64 count) => (float[M] y) {
  yes = Constant <value = bool {1}> ()
  y = Loop (count, yes, x) <
    body = b (int64 i, bool going, float[K] s) => (bool on, float[L] t) {
      on = Identity (going)
      t = Concat <axis = 0> (s, x)
    }
  >
}"""


def test_states_may_grow_where_the_count_is_known():
    (y,) = run(GROWING, {"x": np.ones(2, np.float32), "count": np.asarray(20)})
    assert y.shape == (42,)


WHILE = """
g (float x) => (float y) {
  yes = Constant <value = bool {1}> ()
  bound = Constant <value_float: float = 100.0> ()
  y = Loop (, yes, x) <
    body = b (int64 i, bool going, float s) => (bool on, float t) {
      t = Add (s, s)
      on = Less (t, bound)
    }
  >
}"""


def test_a_loop_that_data_end_is_a_while():
    graph, params, _ = read(WHILE)
    apply = lower(graph)
    function = jax.jit(lambda x: apply(params, {}, {"x": x})["y"])
    for x in (1.0, 3.0, 200.0):
        wanted = x
        while True:
            wanted *= 2
            if wanted >= 100:
                break
        assert function(np.float32(x)) == wanted


ROWS = WHILE.replace("=> (float y)", "=> (float y, float[N] rows)").replace(
    "y = Loop", "y, rows = Loop"
).replace("=> (bool on, float t)", "=> (bool on, float t, float row)").replace(
    "on = Less", "row = Neg (t) on = Less"
)  # fmt: skip


def test_rows_of_a_loop_that_data_end_are_as_many_as_it_runs():
    y, rows = run(ROWS, {"x": np.asarray(3.0, np.float32)})
    assert y == 192
    np.testing.assert_array_equal(rows, -3.0 * 2.0 ** np.arange(1, 7))


def test_such_rows_have_no_shape_inside_jit():
    graph, params, _ = read(ROWS)
    with pytest.raises(ModelError, match="outside of jit"):
        jax.jit(lambda x: lower(graph)(params, {}, {"x": x}))(np.float32(3))


def test_an_endless_loop_is_an_error():
    text = WHILE.replace("on = Less (t, bound)", "on = Identity (going)")
    with pytest.raises(ModelError, match="without an end"):
        run(text, {"x": np.asarray(1.0, np.float32)})
    many = WHILE.replace("Loop (, yes", "Loop (many, yes").replace(
        "bound =", "many = Constant <value_int: int = 4000000000000000000> () bound ="
    )
    with pytest.raises(ModelError, match="4000000000000000000 times"):
        run(many.replace("on = Less (t, bound)", "on = Identity (going)"), {"x": np.float32(1)})


def test_without_a_condition_that_of_the_body_does_not_count():
    text = LOOP.replace("(count, yes, x)", "(count, , x)").replace(
        "on = Identity (going)", "zero = Constant <value_int: int = 0> () on = Less (i, zero)"
    )
    x = np.ones(2, np.float32)
    for count in (3, 30):
        last, every = run(text, {"x": x, "count": np.asarray(count)})
        assert every.shape == (count, 2)
        np.testing.assert_allclose(last, x + sum(range(count)))


SCAN = """
g (float[2] start, float[T, 2] x) => (float[2] last, float[2, T] sums) {
  last, sums = Scan (start, x) <
    num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1],
    scan_output_directions = [1],
    body = b (float[2] s, float[2] e) => (float[2] t, float[2] o) {
      t = Add (s, e)
      o = Identity (t)
    }
  >
}"""


def test_a_scan_backwards_along_other_axes_and_its_gradient():
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    start = np.asarray([1.0, 2.0], np.float32)
    last, sums = run(SCAN, {"start": start, "x": x})
    wanted = start + np.cumsum(x[::-1], axis=0)
    np.testing.assert_allclose(last, wanted[-1], rtol=1e-5)
    np.testing.assert_allclose(sums, wanted[::-1].T, rtol=1e-5)
    graph, params, _ = read(SCAN)
    apply = lower(graph)

    def loss(x):
        return jnp.sum(apply(params, {}, {"start": start, "x": x})["sums"])

    slope = jax.grad(loss)(jnp.asarray(x))
    np.testing.assert_allclose(slope, np.repeat(np.arange(1.0, 8.0)[:, None], 2, 1))
