"""Thawed quantizers compute what the encodings say in plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import FP16, Granularity, Integer
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.thaw import thaw

CASES = {
    "tensor": Encoding(Integer(8), np.float32(0.1), np.int64(113)),
    "channel": Encoding(
        Integer(4, signed=True, strict=True),
        np.float32([0.5, 0.01, 3.0]),
        np.zeros(3, np.int64),
        Granularity(1),
    ),
    "block": Encoding(
        Integer(3, signed=True),
        np.full((4, 2), 0.25, np.float32),
        np.ones((4, 2), np.int64),
        Granularity(1, 2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_rounds_as_the_encoding(case):
    encoding = CASES[case]
    x = np.random.default_rng(0).normal(0, 5, (4, 3)).astype(np.float32)
    expected = encoding.dequantize(encoding.quantize(x))
    np.testing.assert_array_equal(thaw(Encodings({"x": encoding}))["x"](jnp.asarray(x)), expected)


def test_half_precision_is_numpys():
    x = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    quantizer = thaw(Encodings({"x": Encoding(FP16)}))["x"]
    np.testing.assert_array_equal(
        quantizer(jnp.asarray(x)), x.astype(np.float16).astype(np.float32)
    )


def test_freezing_gives_the_encodings_back():
    graph = Graph("g", (), ("tensor", "channel"), (), params=("block",))
    x = {"block": np.ones((4, 3), np.float32)}
    _, back = freeze(graph, x, thaw(Encodings(CASES)))
    for name, encoding in CASES.items():
        assert back[name].format == encoding.format
        assert back[name].granularity == encoding.granularity
        np.testing.assert_array_equal(back[name].scale, encoding.scale)
        np.testing.assert_array_equal(back[name].zero_point, encoding.zero_point)
