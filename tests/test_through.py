"""Training through the integers: the emulation's values, the simulation's derivatives."""

import jax
import numpy as np
import pytest

from jqnt.encodings import Encodings
from jqnt.errors import UnsupportedError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.integer import Accumulator, through
from jqnt.integer import lower as lower_integers
from jqnt.quantizers import Affine, Mixture, SoftRound
from jqnt.thaw import thaw
from tests.built import node
from tests.quantized_case import case, encoded

NODES = [
    node("Gemm", "x w b", "h", transB=1),
    node("Relu", "h", "r"),
    node("Gemm", "r v c", "y", transB=1),
]
NARROW = Accumulator(15, "saturate")


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model():
    inputs = {"x": _normal(1, 64, 16)}
    params = {"w": _normal(2, 32, 16), "b": _normal(3, 32)}
    params |= {"v": _normal(4, 8, 32), "c": _normal(5, 8)}
    graph, params = case(NODES, inputs, ["y"], params)
    found = encoded(graph, params, inputs, ["r", "y"])
    encodings = Encodings({k: e for k, e in found.items() if k not in ("b", "c")})
    return graph, jax.tree.map(np.asarray, params), encodings, inputs


@pytest.mark.parametrize("arithmetic, accumulator", [
    ("tflite-reference", None), ("onnxruntime", NARROW)], ids=str)  # fmt: skip
def test_values_are_the_emulations_and_gradients_the_simulations(arithmetic, accumulator):
    graph, params, encodings, inputs = _model()
    qparams = thaw(encodings)
    apply = through(graph, params, qparams, arithmetic, accumulator=accumulator)
    simulate = lower(graph)

    def loss(run):
        return jax.jit(jax.value_and_grad(lambda p, q: (run(p, q, inputs)["y"] ** 2).sum(), (0, 1)))

    changed = {**params, "w": params["w"] * np.float32(1.03)}
    _, grads = loss(apply)(changed, qparams)
    hard = np.asarray(jax.jit(lambda p, q: apply(p, q, inputs)["y"])(changed, qparams))
    run = lower_integers(graph, changed, encodings, arithmetic, accumulator=accumulator)
    np.testing.assert_array_equal(hard, np.asarray(run(inputs)["y"]))

    def straight(p, q):
        return (simulate(p, q, inputs)["y"] * 2 * hard).sum()

    expected = jax.jit(jax.grad(straight, (0, 1)))(changed, qparams)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_learned_rounding_is_what_it_rounds_to():
    graph, params, encodings, inputs = _model()
    qparams = thaw(encodings)
    grid = qparams["w"]
    assert isinstance(grid, Affine)
    logit = _normal(7, 32, 16)
    qparams["w"] = SoftRound(
        grid.scale, grid.zero_point, grid.bits, logit, grid.signed, grid.strict, grid.granularity
    )
    apply = through(graph, params, qparams)
    ours = jax.jit(lambda p, q: apply(p, q, inputs)["y"])(params, qparams)
    frozen, whole = freeze(graph, params, qparams)
    expected = lower_integers(graph, frozen, whole)(inputs)["y"]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def test_mixtures_are_to_be_decided_first():
    graph, params, encodings, _ = _model()
    qparams = thaw(encodings)
    mixed = Mixture(np.float32([0.5, 0.5]), (qparams["w"], qparams["w"]))
    with pytest.raises(UnsupportedError, match="'w' is a mixture"):
        through(graph, params, {**qparams, "w": mixed})
