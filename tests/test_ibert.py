"""I-BERT's integer Softmax and LayerNorm: Python's integers, and how near they come to reals."""

import math
from fractions import Fraction

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.integer import lower
from tests.built import node
from tests.quantized_case import S8, U8, around, case


def _dyadic(value, real):
    """round(value * m / 2^31 * 2^shift), m of 31 bits, halves to even."""
    mantissa, shift = math.frexp(real)
    return round(Fraction(value * math.floor(mantissa * 2**31 + 0.5)) / 2 ** (31 - shift))


def _softmax(row, sx, sy, zero_point, limits):
    lift = max(0, math.ceil(math.log2(sx * 512)))
    s = sx / 2**lift
    ln2, b, c = (
        math.floor(math.log(2) / s),
        math.floor(1.353 / s),
        math.floor(0.344 / 0.3585 / s**2),
    )
    room = 30 - ((b * b + c) * len(row)).bit_length()
    terms = []
    for q in row:
        d = (q - max(row)) * 2**lift
        z = -d // ln2
        terms.append(math.floor(Fraction((d + z * ln2 + b) ** 2 + c) * Fraction(2) ** (room - z)))
    codes = [_dyadic(e * 2**16 // sum(terms), 2**-16 / sy) + zero_point for e in terms]
    return np.clip(codes, *limits)


def _norm(row, gain, bias, sx, bits, sy, zero_point, limits):
    n = len(row)
    lift = (29 - math.ceil(math.log2(n)) - 2 * bits) // 2
    q = [v * 2**lift for v in row]
    mean = math.floor(Fraction(sum(q), n) + Fraction(1, 2))
    total = sum((v - mean) ** 2 for v in q) + math.floor(1e-5 * n / (sx / 2**lift) ** 2)
    factor = 2**30 // max(math.isqrt(total), 1)
    codes = []
    for v, g, b in zip(q, gain, bias, strict=True):
        wide = float(g) * math.sqrt(n) / 2**30 / (sy / 256)
        moved = _dyadic((v - mean) * factor * (-1 if wide < 0 else 1), abs(wide))
        codes.append(_dyadic(moved + round(float(b) / (sy / 256)), 2**-8) + zero_point)
    return np.clip(codes, *limits)


@pytest.mark.parametrize("grid", [U8, S8], ids=["uint8", "int8"])
@pytest.mark.parametrize("length, spread", [(5, 0.3), (64, 4.0), (700, 2.0)])
def test_softmax(grid, length, spread):
    x = (np.random.default_rng(0).normal(size=(6, length)) * spread).astype(np.float32)
    graph, params = case([node("Softmax", "x", "y", axis=-1)], {"x": x}, ["y"], {})
    grids = {
        "x": around(x, grid, np.random.default_rng(1)),
        "y": Encoding(grid, np.float32(2.0**-8), np.int64(grid.limits[0])),
    }
    ours = lower(graph, params, Encodings(grids), "dyadic")({"x": x}, integers=True)["y"]
    codes = grids["x"].quantize(x)
    scales = float(grids["x"].scale), 2.0**-8
    wanted = [_softmax(row.tolist(), *scales, grid.limits[0], grid.limits) for row in codes]
    np.testing.assert_array_equal(np.asarray(ours), wanted)
    real = np.exp(grids["x"].dequantize(codes).astype(np.float64))
    exact = grids["y"].quantize((real / real.sum(1, keepdims=True)).astype(np.float32))
    # The polynomial is off by 1.9e-3, of sums of 1: half a code.
    assert np.abs(np.asarray(ours).astype(int) - exact).max() <= 1


@pytest.mark.parametrize("grid", [U8, S8], ids=["uint8", "int8"])
@pytest.mark.parametrize("length", [6, 64, 768])
def test_layer_norm(grid, length):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(7, length)) * 3 + 1).astype(np.float32)
    gain, bias = (rng.normal(size=length).astype(np.float32) for _ in range(2))
    gain[0] = 0
    nodes = [node("LayerNormalization", "x g b", "y", axis=-1)]
    graph, params = case(nodes, {"x": x}, ["y"], {"g": gain, "b": bias})
    xs = around(x, grid, rng)
    held = xs.dequantize(xs.quantize(x)).astype(np.float64)
    centred = held - held.mean(1, keepdims=True)
    real = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + bias
    ys = around(real.astype(np.float32), grid, rng)
    encodings = Encodings({"x": xs, "y": ys})
    ours = np.asarray(lower(graph, params, encodings, "dyadic")({"x": x}, integers=True)["y"])
    numbers = float(xs.scale), 8, float(ys.scale), int(ys.zero_point), grid.limits
    wanted = [_norm(row.tolist(), gain, bias, *numbers) for row in xs.quantize(x)]
    np.testing.assert_array_equal(ours, wanted)
    assert np.abs(ours.astype(int) - ys.quantize(real.astype(np.float32))).max() <= 1


def test_what_has_no_integer_form():
    x = np.ones((2, 3, 4), np.float32)
    grid = Encoding(U8, np.float32(1e-6), np.int64(0))
    graph, params = case([node("Softmax", "x", "y", axis=-1)], {"x": x}, ["y"], {})
    with pytest.raises(UnsupportedError, match=r"'n_y' .dyadic.: its input scale 1e-06 is not"):
        lower(graph, params, Encodings({"x": grid, "y": grid}), "dyadic")
    graph, params = case(
        [node("LayerNormalization", "x g", "y", axis=1)],
        {"x": x},
        ["y"],
        {"g": np.ones((3, 4), np.float32)},
    )
    with pytest.raises(UnsupportedError, match="LayerNorm runs along the last axis"):
        lower(graph, params, Encodings({"x": grid, "y": grid}), "dyadic")
    wide = Encoding(Integer(16), np.float32(1e-3), np.int64(0))
    graph, params = case(
        [node("LayerNormalization", "x g", "y")], {"x": x}, ["y"], {"g": np.ones(4, np.float32)}
    )
    with pytest.raises(UnsupportedError, match="sums of 4 squares of uint16 leave 30 bits"):
        lower(graph, params, Encodings({"x": wide, "y": wide}), "dyadic")
