"""Activation functions, element by element."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.ops.elementwise import gauss_error
from jqnt.ops.namespace import aligned, namespace, pointwise
from jqnt.ops.registry import lowering

__all__ = ["logistic"]


def _activation(op: str, *, since: int = 1, domain: str = ""):
    """Registers `function(xp, node, x)` as elementwise; its result gets the type of x."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def typed(xp, node, x, *others):
            return function(xp, node, x, *others).astype(x.dtype)

        pointwise(op, since=since, domain=domain)(typed)
        return function

    return register


def logistic(xp, x):
    """1 / (1 + exp(-x))."""
    return jax.nn.sigmoid(x) if xp is jnp else 1 / (1 + np.exp(-x))


@_activation("Relu")
def relu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Relu.html"""
    return jax.nn.relu(x) if xp is jnp else np.maximum(x, 0)


@_activation("LeakyRelu")
def leaky_relu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__LeakyRelu.html"""
    return xp.where(x >= 0, x, x * node.attrs.get("alpha", 0.01))


@_activation("PRelu", since=7)
def prelu(xp, node, x, slope):
    """https://onnx.ai/onnx/operators/onnx__PRelu.html"""
    return xp.where(x >= 0, x, x * slope)


@lowering("PRelu", since=1)
def prelu_1(node, x, slope):
    """https://onnx.ai/onnx/operators/onnx__PRelu.html (a 1-D slope goes along the channels)"""
    xp = namespace(x, slope)
    if slope.ndim == 1 and slope.size > 1:
        slope = xp.reshape(slope, (-1,) + (1,) * (x.ndim - 2))
    return prelu(xp, node, *aligned(xp, x, slope))


@_activation("ThresholdedRelu")
def thresholded_relu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__ThresholdedRelu.html"""
    return xp.where(x > node.attrs.get("alpha", 1.0), x, xp.zeros_like(x))


@_activation("Elu")
def elu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Elu.html"""
    return _elu(xp, x, node.attrs.get("alpha", 1.0))


@_activation("Selu", since=1)
def selu_1(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Selu.html (the constants with fewer digits)"""
    return node.attrs.get("gamma", 1.0507) * _elu(xp, x, node.attrs.get("alpha", 1.6732))


@_activation("Selu", since=6)
def selu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Selu.html"""
    alpha = node.attrs.get("alpha", 1.67326319217681884765625)
    return node.attrs.get("gamma", 1.05070102214813232421875) * _elu(xp, x, alpha)


@_activation("Celu")
def celu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Celu.html"""
    alpha = node.attrs.get("alpha", 1.0)
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0) / alpha))


def _elu(xp, x, alpha):
    # the minimum keeps exp, and its derivative, finite where x is positive
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


@_activation("Sigmoid")
def sigmoid(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Sigmoid.html"""
    return logistic(xp, x)


@_activation("HardSigmoid")
def hard_sigmoid(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__HardSigmoid.html"""
    return xp.clip(x * node.attrs.get("alpha", 0.2) + node.attrs.get("beta", 0.5), 0, 1)


@_activation("HardSwish")
def hard_swish(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__HardSwish.html"""
    return x * xp.clip(x * (1 / 6) + 0.5, 0, 1)


@_activation("Softplus")
def softplus(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Softplus.html"""
    return _softplus(xp, x)


def _softplus(xp, x):
    return xp.logaddexp(x, xp.zeros_like(x))


@_activation("Softsign")
def softsign(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Softsign.html"""
    return x / (1 + xp.abs(x))


@_activation("Mish")
def mish(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Mish.html"""
    return x * xp.tanh(_softplus(xp, x))


@_activation("Swish")
def swish(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Swish.html"""
    return x * logistic(xp, x * node.attrs.get("alpha", 1.0))


@_activation("SwiGLU")
def swiglu(xp, node, x, gate):
    """https://onnx.ai/onnx/operators/onnx__SwiGLU.html"""
    return x * logistic(xp, x * node.attrs.get("alpha", 1.0)) * gate


@_activation("Gelu", domain="com.microsoft")
@_activation("Gelu", since=20)
def gelu(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Gelu.html"""
    if node.attrs.get("approximate", "none") == "tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + xp.tanh(inner))
    return 0.5 * x * (1 + gauss_error(xp, x * 0.7071067811865476))


@_activation("Shrink")
def shrink(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Shrink.html"""
    bound, bias = node.attrs.get("lambd", 0.5), node.attrs.get("bias", 0.0)
    low = xp.where(x < -bound, x + bias, xp.zeros_like(x))
    return xp.where(x > bound, x - bias, low)


@lowering("Dropout", static=(2,))
def dropout(node, x, ratio=None, training_mode=None):
    """https://onnx.ai/onnx/operators/onnx__Dropout.html (inference: the identity)"""
    training = isinstance(training_mode, np.ndarray) and bool(training_mode.any())
    if training and not (isinstance(ratio, np.ndarray) and not ratio.any()):
        raise UnsupportedError(
            f"Dropout node {node.name!r} is in training mode, which draws random numbers; "
            f"export the model for inference"
        )
    if len(node.outputs) < 2:
        return x
    return x, np.ones(x.shape, bool if node.since >= 10 else x.dtype)
