"""Layers as matrix products on patches, against the operators' own lowerings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.learn.layer import layer_of, matrix, outputs, patches, product, tensor

CASES = {
    "conv": ("Conv", (6, 4, 3, 3), (2, 4, 7, 8), {"pads": (1, 1, 1, 1)}),
    "conv strided, uneven pads": (
        "Conv",
        (6, 4, 3, 2),
        (2, 4, 7, 8),
        {"strides": (2, 3), "pads": (0, 1, 2, 1), "dilations": (2, 1)},
    ),
    "conv same_lower": ("Conv", (5, 4, 2, 2), (2, 4, 7, 7), {"auto_pad": "SAME_LOWER"}),
    "pointwise": ("Conv", (5, 4, 1, 1), (2, 4, 3, 3), {}),
    "depthwise": ("Conv", (4, 1, 3, 3), (2, 4, 6, 6), {"group": 4, "pads": (1, 1, 1, 1)}),
    "depthwise, two outputs each": ("Conv", (8, 1, 3, 3), (2, 4, 6, 6), {"group": 4}),
    "grouped": ("Conv", (6, 2, 3, 3), (2, 4, 5, 5), {"group": 2}),
    "conv 1-d": ("Conv", (3, 2, 5), (2, 2, 9), {"strides": (2,)}),
    "conv 3-d": ("Conv", (3, 2, 2, 2, 2), (1, 2, 4, 5, 3), {}),
    "transposed": (
        "ConvTranspose",
        (4, 3, 3, 3),
        (2, 4, 5, 4),
        {"strides": (2, 2), "pads": (1, 0, 1, 2), "output_padding": (1, 0)},
    ),
    "transposed, grouped, dilated": (
        "ConvTranspose",
        (4, 3, 2, 3),
        (2, 4, 5, 4),
        {"group": 2, "dilations": (2, 1)},
    ),
    "transposed, same_upper": (
        "ConvTranspose",
        (4, 3, 3, 3),
        (2, 4, 5, 4),
        {"strides": (2, 2), "auto_pad": "SAME_UPPER"},
    ),
    "transposed, output_shape": (
        "ConvTranspose",
        (4, 3, 3, 3),
        (2, 4, 5, 4),
        {"strides": (2, 2), "output_shape": (10, 8)},
    ),
    "gemm": ("Gemm", (4, 5), (3, 4), {"alpha": 0.5}),
    "gemm transposed": ("Gemm", (5, 4), (4, 3), {"transB": 1, "transA": 1}),
    "matmul": ("MatMul", (4, 5), (2, 3, 4), {}),
    "matmul from the left": ("MatMul", (5, 4), (2, 4, 3), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_is_the_product_of_patches_and_matrix(case):
    op, shape, x_shape, attrs = CASES[case]
    names = ("w", "x") if case == "matmul from the left" else ("x", "w")
    layer = layer_of(Node(op, "n", names, ("y",), attrs, since=13), "w", shape)
    keys = jax.random.split(jax.random.key(0))
    w, x = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], x_shape)
    p = np.concatenate(patches(layer, x), -1).astype(np.float64)
    y = np.einsum("sgk,gok->sgo", p, np.asarray(matrix(layer, w), np.float64))
    expected = outputs(layer, product(layer, x, w))
    np.testing.assert_allclose(expected, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tensor(layer, matrix(layer, w)), w)


def test_a_stored_weight_may_be_transposed_on_the_way():
    node = Node("MatMul", "n", ("x", "wt"), ("y",), since=13)
    plain = layer_of(node, "wt", (4, 5))
    stored = layer_of(node, "wt", (4, 5), perm=(1, 0))
    w, x = jax.random.normal(jax.random.key(0), (4, 5)), jnp.ones((2, 4))
    np.testing.assert_array_equal(matrix(stored, w.T), matrix(plain, w))
    np.testing.assert_array_equal(product(stored, x, w.T), product(plain, x, w))
    np.testing.assert_array_equal(tensor(stored, matrix(stored, w.T)), w.T)


def test_equal_layers_are_equal_whatever_their_names():
    a, b = (
        layer_of(Node("Conv", n, (n, "w"), ("y" + n,), {"pads": [1, 1, 1, 1]}), "w", (2, 3, 3, 3))
        for n in "ab"
    )
    assert a == b and hash(a) == hash(b)


def test_a_batched_weight_is_refused():
    with pytest.raises(UnsupportedError, match=r"MatMul node 'n': weight 'w' of shape \[2, 4, 5\]"):
        layer_of(Node("MatMul", "n", ("x", "w"), ("y",)), "w", (2, 4, 5))
