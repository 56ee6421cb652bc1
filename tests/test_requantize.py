"""Requantization against numpy: int64 accumulators, float32 operations one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.errors import UnsupportedError
from jqnt.integer import ncnn
from jqnt.integer.mnn import CONV, DEPTHWISE
from jqnt.integer.requantize import DIVIDE, FLOAT, half_away, roundf
from jqnt.integer.requantize_fixed import DOUBLE, DYADIC, POWER, SINGLE
from jqnt.integer.rule import Out, Zeros, along_last

CHANNELS = 64


def _accumulators() -> np.ndarray:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**24), 2**24, (4096, CHANNELS))
    acc[:512] = rng.integers(-4096, 4096, (512, CHANNELS))
    acc[512] = np.iinfo(np.int32).max - 2**20
    acc[513] = np.iinfo(np.int32).min + 2**20
    acc[514] = 0
    return acc.astype(np.int32)


@pytest.mark.parametrize("zero_point, low, high", [(0, 0, 255), (131, 131, 200), (-7, -128, 127)])
@pytest.mark.parametrize("ties", [False, True])
def test_float_requantization(zero_point, low, high, ties):
    rng = np.random.default_rng(1)
    acc = _accumulators()
    sx, sy = np.float32(0.0123), np.float32(0.0456)
    sw = rng.uniform(1e-4, 1e-2, CHANNELS).astype(np.float32)
    if ties:
        sx, sy, sw = np.float32(0.5), np.float32(1), np.full(CHANNELS, 2.0**-3, np.float32)
    bias = rng.integers(-(2**18), 2**18, CHANNELS)
    table = FLOAT.prepare(sx, sw, sy, bias, bias)
    out = Out(np.int32(zero_point), np.int32(low), np.int32(high))
    ours = jax.jit(lambda a, t: FLOAT.apply(a, along_last(t, 2), out))(acc, table)
    total = (acc.astype(np.int64) + bias).astype(np.int32).astype(np.float32)
    exact = np.rint(total * ((sx * sw) / sy)).astype(np.float64) + zero_point
    np.testing.assert_array_equal(np.asarray(ours), np.clip(exact, low, high))


def test_rescaling_divides():
    codes = np.arange(-128, 128, dtype=np.int32)
    for sx, sy in [(0.1, 0.3), (0.5, 1.0), (0.0371, 0.0742), (3.0, 0.7)]:
        sx, sy = np.float32(sx), np.float32(sy)
        table = DIVIDE.prepare(sx, 3, sy)
        out = Out(np.int32(5), np.int32(-128), np.int32(127))
        ours = jax.jit(lambda c, t, out=out: DIVIDE.apply(c, t, out))(jnp.asarray(codes), table)
        real = (codes - 3).astype(np.float32) * sx
        expected = np.clip(np.rint(real / sy) + 5, -128, 127)
        np.testing.assert_array_equal(np.asarray(ours), expected)


def _sample(rule, power=False, zeros=()):
    rng = np.random.default_rng(2)
    acc = _accumulators() >> 2
    sx, sy = np.float32(0.0123), np.float32(0.0456)
    sw = rng.uniform(1e-4, 1e-2, CHANNELS).astype(np.float32)
    if power:
        sx, sy, sw = (
            np.float32(0.5),
            np.float32(1),
            np.float32(2.0 ** -rng.integers(3, 12, CHANNELS)),
        )
    bias = rng.integers(-(2**18), 2**18, CHANNELS)
    real = (bias * (np.float64(sx) * sw)).astype(np.float32)
    table = rule.prepare(sx, sw, sy, bias, real, *zeros)
    out = Out(np.int32(-7), np.int32(-128), np.int32(127))
    ours = jax.jit(lambda a, t: rule.apply(a, along_last(t, 2), out))(acc, table)
    return np.asarray(ours), acc, sx, sw, sy, bias, real


def _multiplier(sx, sw, sy):
    """Python's exact frexp, rounded half away, as in TFLite."""
    mantissa, exponent = np.frexp(np.float64(sx) * sw.astype(np.float64) / np.float64(sy))
    return np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64), exponent


def _clip(value):
    return np.clip(value - 7, -128, 127)


def test_two_roundings():
    ours, acc, sx, sw, sy, bias, _ = _sample(DOUBLE)
    m, shift = _multiplier(sx, sw, sy)
    total = (acc.astype(np.int64) + bias) << np.maximum(shift, 0)
    high = (total * m + 2**30) >> 31
    right = np.maximum(-shift, 0)
    magnitude = (np.abs(high) + ((1 << right) >> 1)) >> right
    np.testing.assert_array_equal(ours, _clip(np.sign(high) * magnitude))


@pytest.mark.parametrize("rule, power", [(SINGLE, False), (POWER, True), (DYADIC, False)])
def test_one_rounding(rule, power):
    ours, acc, sx, sw, sy, bias, _ = _sample(rule, power)
    m, shift = _multiplier(sx, sw, sy)
    product, right = (acc.astype(np.int64) + bias) * m, 31 - shift
    expected = (product + (np.int64(1) << (right - 1))) >> right
    if rule is DYADIC:
        rest = product & ((np.int64(1) << right) - 1)
        tie = rest == (np.int64(1) << (right - 1))
        expected = np.where(tie & (expected & 1 == 1), expected - 1, expected)
    np.testing.assert_array_equal(ours, _clip(expected))


def test_shifts_need_powers_of_two():
    with pytest.raises(UnsupportedError, match="to be a power of two"):
        _sample(POWER)


def _away(value):
    return np.trunc(value + np.copysign(np.float32(0.5), value)).astype(np.float64)


def test_mnn_keeps_its_bias_real():
    f, sums = np.float32, np.arange(CHANNELS) * 7 - 200
    ours, acc, sx, sw, sy, _, real = _sample(CONV, zeros=[Zeros(-9, -7, sums)])
    moved = acc.astype(np.int64) + (128 - 9) * sums
    bias = (real - sums.astype(f) * sw * f(128 - 9) * sx) / sy + f(-7)
    value = moved.astype(np.int32).astype(f) * sw * (sx / sy) + bias
    np.testing.assert_array_equal(ours, np.clip(_away(value), -128, 127))


def test_mnn_cuts_the_bias_of_depthwise_convolutions():
    f, sums = np.float32, np.arange(CHANNELS) * 7 - 200
    ours, acc, sx, sw, sy, _, real = _sample(DEPTHWISE, zeros=[Zeros(-9, -7, sums)])
    whole = np.trunc(real / (sx * sw)) + np.trunc(f(-7) / (sw * (sx / sy)))
    total = (acc + whole.astype(np.int64)).astype(np.int32).astype(f)
    np.testing.assert_array_equal(ours, np.clip(_away(total * (sw * (sx / sy))), -128, 127))


def _roundf(value):
    whole = np.trunc(value)
    return whole.astype(np.float64) + np.where(np.abs(value - whole) >= 0.5, np.sign(value), 0)


@pytest.mark.parametrize(
    "rule, fused, rounding",
    [
        (ncnn.CONV, True, _away),
        (ncnn.DEPTHWISE_3X3, True, _roundf),
        (ncnn.DEPTHWISE, False, _roundf),
        (ncnn.DENSE, False, _away),
    ],
    ids=["conv", "depthwise 3x3", "depthwise", "dense"],
)
def test_ncnn_multiplies_by_reciprocals(rule, fused, rounding):
    ours, acc, sx, sw, sy, _, real = _sample(rule)
    one = np.float32(1)
    total, scale = acc.astype(np.float32), one / ((one / sx) * (one / sw))
    value = total * scale + real
    if fused:  # a product of two float32 numbers is exact in float64
        value = (total.astype(np.float64) * scale + real).astype(np.float32)
    np.testing.assert_array_equal(ours, _clip(rounding(value * (one / sy))))


def test_roundings_away_from_zero_part_just_below_a_half():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    values = jnp.float32(np.float32([below, -below, 0.5, -0.5, 1.5, 200]))
    out = Out(np.int32(1), np.int32(-128), np.int32(127))
    np.testing.assert_array_equal(roundf(values, out), [1, 1, 2, 0, 3, 127])
    np.testing.assert_array_equal(half_away(values, out), [2, 0, 2, 0, 3, 127])
