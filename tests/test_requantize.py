"""Requantization against numpy: int64 accumulators, float32 operations one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.integer.requantize import DIVIDE, FLOAT
from jqnt.integer.rule import Out, along_last

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
    table = FLOAT.prepare(sx, sw, sy, bias)
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
