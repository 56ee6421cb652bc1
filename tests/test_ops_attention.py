"""Attention, losses and signals beyond the backend suite: gradients, laws, wrong operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_node import agree, floats, model
from onnx import TensorProto

from jqnt.errors import ModelError
from jqnt.graph.ir import Node
from jqnt.ops.registry import find


def call(op, arrays, since=28, outputs=("y",), **attrs):
    node = Node(op, "n", (), outputs, attrs, "", since)
    return find(node).function(node, *arrays)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_is_that_of_jax(heads, causal):
    q, k, v = normal(2, 4, 5, 8), normal(2, heads, 5, 8) + 0.1, normal(2, heads, 5, 6) - 0.1
    ours, *_ = call("Attention", (q, k, v), is_causal=causal)
    last = [jnp.swapaxes(t, 1, 2) for t in (q, k, np.pad(v, ((0, 0),) * 3 + ((0, 2),)))]
    theirs = jax.nn.dot_product_attention(*last, is_causal=bool(causal))
    np.testing.assert_allclose(ours, jnp.swapaxes(theirs, 1, 2)[..., :6], rtol=1e-4, atol=1e-5)


def test_a_query_without_keys_gives_zero_and_a_finite_gradient():
    q, k, v = normal(1, 1, 2, 4), normal(1, 1, 3, 4), normal(1, 1, 3, 4)
    mask = np.asarray([[True, False, True], [False, False, False]])

    def total(q):
        return jnp.sum(call("Attention", (q, k, v, mask))[0])

    assert not np.any(call("Attention", (q, k, v, mask))[0][:, :, 1])
    assert np.isfinite(jax.grad(total)(jnp.asarray(q))).all()


@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("Attention", (normal(1, 3, 2, 4), normal(1, 2, 2, 4), normal(1, 2, 2, 4)), {}),
        ("Attention", (normal(1, 2, 9), normal(1, 2, 8), normal(1, 2, 8)), {"q_num_heads": 2}),
        ("Attention", (normal(1, 1, 2, 4),) * 3, {"qk_matmul_output_mode": 9}),
        ("RotaryEmbedding", (normal(1, 2, 8), normal(9, 2), normal(9, 2)), {}),
        ("RotaryEmbedding", (normal(1, 2, 2, 4), normal(1, 2, 3), normal(1, 2, 3)), {}),
        ("LinearAttention", (normal(1, 2, 4),) * 3, {"q_num_heads": 1, "kv_num_heads": 1}),
        ("DFT", (normal(2, 4, 3),), {}),
        ("NegativeLogLikelihoodLoss", (normal(2, 3), np.asarray([0, 1])), {"reduction": "max"}),
        ("STFT", (normal(1, 16, 1), np.asarray(0), None, np.asarray(8)), {}),
    ],
)
def test_operands_that_do_not_fit_name_the_node(op, arrays, attrs):
    with pytest.raises(ModelError, match=f"{op} node 'n'"):
        call(op, arrays, **attrs)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("length", [7, 8, 12])
def test_a_transform_and_its_inverse(onesided, length):
    x = normal(2, 8, 1)
    size = np.asarray(length)
    spectrum = call("DFT", (jnp.asarray(x), size), onesided=onesided)
    fitted = np.pad(x[..., 0], ((0, 0), (0, max(length - 8, 0))))[:, :length]
    wanted = np.fft.rfft(fitted) if onesided else np.fft.fft(fitted)
    np.testing.assert_allclose(spectrum[..., 0] + 1j * spectrum[..., 1], wanted, atol=1e-5)
    back = call("DFT", (spectrum, size), onesided=onesided, inverse=1)
    np.testing.assert_allclose(back[..., 0], fitted, atol=1e-6)


@pytest.mark.parametrize("onesided", [0, 1])
def test_short_transforms_agree_with_onnxruntime(onesided):
    given = {
        "x": normal(1, 128, 1),
        "step": np.asarray(16),
        "window": np.hanning(32).astype(np.float32),
        "length": np.asarray(32),
    }
    proto = model("STFT", given, floats("y"), 17, ["step", "length"], onesided=onesided)
    agree(proto, given, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_a_loss_ignores_what_it_is_told_to():
    scores, target = normal(4, 3), np.asarray([0, 2, -7, 1])

    def loss(scores):
        return call("SoftmaxCrossEntropyLoss", (scores, target), ignore_index=-7)[0]

    slope = jax.grad(loss)(jnp.asarray(scores))
    exact = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) - np.eye(3)[np.maximum(target, 0)]
    exact[2] = 0
    np.testing.assert_allclose(slope, exact / 3, rtol=1e-4, atol=1e-6)


def test_mel_filters_and_windows_are_static():
    window = call("HannWindow", (np.asarray(8),))
    assert isinstance(window, np.ndarray) and window.dtype == np.float32
    np.testing.assert_allclose(window, np.hanning(9)[:8], atol=1e-7)
    given = {
        "bins": np.asarray(8),
        "length": np.asarray(64),
        "rate": np.asarray(16000),
        "low": np.asarray(0.0, np.float32),
        "high": np.asarray(8000.0, np.float32),
    }
    agree(model("MelWeightMatrix", given, [("y", TensorProto.FLOAT)], 17, list(given)), given)
