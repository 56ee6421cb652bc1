"""Proofs about accumulators against exhaustive sums, and narrow accumulators against int64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError
from jqnt.formats import Integer
from jqnt.integer import Accumulator, bounds
from jqnt.integer import lower as lower_integers
from tests.built import node
from tests.quantized_case import S8, U8, case, encoded

NODES = [node("Gemm", "x w b", "y", transB=1)]


def _layer(size=24, outputs=5, seed=0, **grids):
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.normal(size=(200, size)).astype(np.float32)}
    params = {"w": rng.normal(size=(outputs, size)), "b": rng.normal(size=outputs)}
    graph, params = case(NODES, inputs, ["y"], params)
    return graph, params, encoded(graph, params, inputs, ["y"], **grids), inputs


def _codes(params, encodings):
    return encodings["w"].quantize(params["w"]), encodings["b"].quantize(params["b"])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([U8, S8]))
def test_no_input_and_no_order_leaves_the_bound(seed, grid):
    graph, params, encodings, _ = _layer(seed=seed, activation=grid)
    (found,) = bounds(graph, params, encodings)
    weight, bias = _codes(params, encodings)
    low, high = grid.limits
    zero_point = int(encodings["x"].zero_point)
    extreme = np.where(weight > 0, high, low) - zero_point
    best = np.maximum(weight * extreme, 0).sum(1) + np.maximum(bias, 0)
    extreme = np.where(weight > 0, low, high) - zero_point
    worst = np.minimum(weight * extreme, 0).sum(1) + np.minimum(bias, 0)
    assert (found.high, found.low) == (best.max(), worst.min())
    assert -(2 ** (found.bits - 1)) <= found.low and found.high < 2 ** (found.bits - 1)
    assert found.low < -(2 ** (found.bits - 2)) or found.high >= 2 ** (found.bits - 2)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x = rng.integers(low, high + 1, weight.shape[1]) - zero_point
        order = rng.permutation(weight.shape[1])
        sums = np.cumsum((weight * x)[:, order], 1)
        assert found.low <= sums.min() and sums.max() <= found.high


def test_the_safe_reach_is_safe_and_sharp():
    graph, params, encodings, _ = _layer(size=300)
    (found,) = bounds(graph, params, encodings, bits=16)
    assert not found.fits and 0 < found.reach < 255
    weight, bias = _codes(params, encodings)
    largest = np.abs(weight).sum(1)
    assert (largest * found.reach + np.abs(bias)).max() <= 2**15 - 1
    assert (largest * (found.reach + 1) + np.abs(bias)).max() > 2**15 - 1
    (whole,) = bounds(graph, params, encodings)
    assert whole.fits and whole.bits <= 32


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize("bits", [12, 16, 24])
def test_narrow_accumulators(overflow, bits):
    graph, params, encodings, inputs = _layer(size=300)
    narrow = Accumulator(bits, overflow)
    run = lower_integers(graph, params, encodings, accumulator=narrow)
    ours = np.asarray(run(inputs, integers=True)["y"])
    weight, bias = _codes(params, encodings)
    x, y = encodings["x"], encodings["y"]
    total = (x.quantize(inputs["x"]) - x.zero_point) @ weight.T + bias
    top = 2 ** (bits - 1)
    wrapped = (total + top) % (2 * top) - top if overflow == "wrap" else total.clip(-top, top - 1)
    assert bits == 24 or (wrapped != total).any()
    scale = (x.scale * encodings["w"].scale) / y.scale
    expected = np.rint(wrapped.astype(np.float32) * scale) + y.zero_point
    np.testing.assert_array_equal(ours, np.clip(expected, 0, 255))


def test_impossible_accumulators():
    with pytest.raises(ConfigError, match="2 to 32 bits, not 40"):
        Accumulator(40)


def test_layers_come_in_order_and_without_data():
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)}
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y", group=4)]
    params = {"w": rng.normal(size=(4, 4, 3, 3)), "v": rng.normal(size=(4, 1, 3, 3))}
    graph, params = case(nodes, inputs, ["y"], params)
    encodings = encoded(graph, params, inputs, ["r", "y"])
    found = bounds(graph, params, encodings)
    assert [(b.tensor, b.node) for b in found] == [("r", "n_c"), ("y", "n_y")]
    codes = Encodings({**encodings.tensors, "r": Encoding(Integer(8), np.float32(1), np.int64(0))})
    assert bounds(graph, params, codes)[1].high == 255 * max(
        np.maximum(encodings["v"].quantize(params["v"]), 0).sum((1, 2, 3))
    )
