"""Activation functions, and the softmax family."""

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.ops.namespace import axis_of, namespace, pointwise
from jqnt.ops.registry import lowering

__all__ = ["softmax"]


@pointwise("Relu")
def relu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Relu.html"""
    return jax.nn.relu(x) if xp is jnp else np.maximum(x, np.zeros((), x.dtype))


@pointwise("LeakyRelu")
def leaky_relu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__LeakyRelu.html"""
    return xp.where(x >= 0, x, x * node.attrs.get("alpha", 0.01))


@pointwise("Sigmoid")
def sigmoid(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Sigmoid.html"""
    return jax.nn.sigmoid(x) if xp is jnp else 1 / (1 + np.exp(-x))


def softmax(xp, x, axes: tuple[int, ...]):
    """exp(x - max) / sum of it over `axes`."""
    if xp is jnp:
        return jax.nn.softmax(x, axis=axes)
    raised = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return raised / np.sum(raised, axis=axes, keepdims=True)


@lowering("Softmax", since=1)
def softmax_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Softmax.html (all axes from `axis` on, as one)"""
    axis = axis_of(node, node.attrs.get("axis", 1), x.ndim)
    return softmax(namespace(x), x, tuple(range(axis, x.ndim)))


@lowering("Softmax", since=13)
def softmax_13(node, x):
    """https://onnx.ai/onnx/operators/onnx__Softmax.html (one axis)"""
    return softmax(namespace(x), x, (axis_of(node, node.attrs.get("axis", -1), x.ndim),))


@lowering("Dropout", since=1)
def dropout(node, x, ratio=None, training_mode=None):
    """https://onnx.ai/onnx/operators/onnx__Dropout.html (inference: the identity)"""
    if len(node.outputs) < 2:
        return x
    return x, np.ones(x.shape, bool if node.since >= 10 else x.dtype)
