"""int8 products of every kernel against int64 numpy, and of both platforms' forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.ops import int8_products
from jqnt.ops.int8_products import convolve, matmul
from jqnt.ops.window import Window


def codes(shape, seed):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize(
    "a, b",
    [
        ((5,), (5,)),
        ((5,), (5, 7)),
        ((2, 5, 3), (3,)),
        ((3, 5), (5, 7)),
        ((2, 1, 3, 33), (4, 33, 17)),
        ((16, 32), (32, 48)),
    ],
)
def test_matrix_products(a, b):
    a, b = codes(a, 0), codes(b, 1)
    expected = np.matmul(a.astype(np.int64), b.astype(np.int64))
    for product in (matmul, int8_products._filled_product):
        found = product(jnp.asarray(a), jnp.asarray(b))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("groups, inputs, outputs", [(1, 3, 5), (1, 40, 8), (6, 6, 12), (2, 8, 6)])
@pytest.mark.parametrize("strides, dilations", [((1, 1), (1, 1)), ((2, 1), (1, 2))])
def test_convolutions(groups, inputs, outputs, strides, dilations):
    x, w = codes((2, 9, 8, inputs), 0), codes((3, 2, inputs // groups, outputs), 1)
    view = Window((3, 2), strides, dilations, ((0, 0), (0, 0)))
    found = convolve(jnp.asarray(x), jnp.asarray(w), view, groups)
    rows = (9 - view.spans[0]) // strides[0] + 1
    columns = (8 - view.spans[1]) // strides[1] + 1
    expected = np.zeros((2, rows, columns, outputs), np.int64)
    for t, u, o in np.ndindex(rows, columns, outputs):
        group = o // (outputs // groups)
        seen = x[
            :,
            t * strides[0] : t * strides[0] + view.spans[0] : dilations[0],
            u * strides[1] : u * strides[1] + view.spans[1] : dilations[1],
            group * (inputs // groups) : (group + 1) * (inputs // groups),
        ]
        expected[:, t, u, o] = np.einsum("nabi,abi->n", seen.astype(np.int64), w[..., o])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
