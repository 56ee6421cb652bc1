"""Signed grids of one bit are {-1, +1}, whoever rounds: simulation, learner, file, integers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort
import pytest
from built import built, node

from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import Integer, format_named
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.integer.lower import lower as integers
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.learn.adaround import adaround
from jqnt.learn.calibrate import calibrate
from jqnt.observers import exact_mse
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.quantizers import Affine, SoftRound
from jqnt.rules import Rule

RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 8)).astype(np.float32)
GRAPH, PARAMS, _ = import_onnx(
    built([node("Gemm", "x w", "y", transB=1)], {"x": ["N", 8]}, ["y"], {"w": W})
)
BATCHES = [{"x": RNG.normal(size=(64, 8)).astype(np.float32)}]
PLAN = plan(GRAPH, (Rule(role="weight", format="int1"),))
THETA = calibrate(lower(GRAPH), PARAMS, PLAN, BATCHES, weight_observer=exact_mse())


def test_the_format_has_no_zero():
    fmt = format_named("int1")
    assert fmt == Integer(1, signed=True, strict=True) and fmt.limits == (-1, 1) and fmt.even
    assert format_named("uint1").limits == (0, 1)


def test_each_value_takes_the_sign_and_the_code_agrees():
    found = THETA["w"]
    scale = np.asarray(found.scale)[:, None]
    np.testing.assert_array_equal(found(jnp.asarray(W)), np.where(W >= 0, scale, -scale))
    np.testing.assert_array_equal(found.codes(jnp.asarray(W)), np.where(W >= 0, 1, -1))
    # The best two-level grid {-s, s} has s = E|w|.
    np.testing.assert_allclose(scale[:, 0], np.abs(W).mean(1), rtol=0.03)


def test_learned_rounding_finds_the_best_signs():
    learned = adaround(GRAPH, PARAMS, THETA, PLAN, BATCHES, steps=200, key=jax.random.key(0))
    assert isinstance(learned["w"], SoftRound)
    x = BATCHES[0]["x"]
    exact = x.astype(np.float64) @ W.T.astype(np.float64)
    lossy = np.asarray(THETA["x"](jnp.asarray(x)), np.float64)
    scale = np.asarray(THETA["w"].scale, np.float64)
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    least = np.stack(
        [((exact[:, [o]] - lossy @ signs.T * scale[o]) ** 2).sum(0).min() for o in range(3)]
    )
    values = np.asarray(learned["w"].harden(jnp.asarray(W)), np.float64)
    np.testing.assert_allclose(np.abs(values), np.repeat(scale[:, None], 8, 1), rtol=1e-6)
    found = ((exact - lossy @ values.T) ** 2).sum(0)
    nearest = np.asarray(THETA["w"](jnp.asarray(W)), np.float64)
    assert (found <= ((exact - lossy @ nearest.T) ** 2).sum(0) * (1 + 1e-6)).all()
    np.testing.assert_allclose(found, least, rtol=0.05)


def test_file_and_integers_have_the_same_codes():
    params, encodings = freeze(GRAPH, PARAMS, bind(THETA, PLAN))
    codes = np.where(W >= 0, 1, -1)
    np.testing.assert_array_equal(encodings["w"].quantize(params["w"]), codes)
    model = to_qdq(GRAPH, params, encodings)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, BATCHES[0])[0]
    run = integers(GRAPH, params, encodings, arithmetic="onnxruntime")
    step = float(encodings["y"].scale)
    for ours in (run(BATCHES[0])["y"], lower(GRAPH)(PARAMS, bind(THETA, PLAN), BATCHES[0])["y"]):
        assert np.abs(np.asarray(ours) - theirs).max() <= 1.001 * step
        assert (np.abs(np.asarray(ours) - theirs) < 0.5 * step).mean() > 0.99


def test_what_is_computed_and_what_has_a_zero_is_refused():
    one = Affine(jnp.float32(0.5), jnp.float32(0), jnp.float32(1), strict=True)
    with pytest.raises(UnsupportedError, match=r"'x' is computed.*a grid with a zero"):
        freeze(GRAPH, PARAMS, {"x": one})
    with pytest.raises(DataError, match="'w' has the codes -1 and 0"):
        freeze(GRAPH, PARAMS, {"w": Affine(jnp.float32(0.5), jnp.float32(0), jnp.float32(1))})
