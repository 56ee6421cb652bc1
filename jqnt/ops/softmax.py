"""The softmax family: over one axis from opset 13 on, over all from `axis` on before."""

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.ops.namespace import axis_of, namespace
from jqnt.ops.registry import lowering

__all__ = ["log_softmax", "softmax"]


def softmax(xp, x, axes: tuple[int, ...]):
    """exp(x - max) / sum of it over `axes`."""
    if xp is jnp:
        return jax.nn.softmax(_rounded(x), axis=axes)
    raised = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return raised / np.sum(raised, axis=axes, keepdims=True)


def log_softmax(xp, x, axes: tuple[int, ...]):
    """x - max - log(sum(exp(x - max))) over `axes`."""
    if xp is jnp:
        return jax.nn.log_softmax(_rounded(x), axis=axes)
    shifted = x - np.max(x, axis=axes, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))


def _rounded(x):
    """x itself, which XLA may not contract with the difference to its maximum.

    A product before the softmax would become a fused multiply-add there, so that the largest
    element is not its own maximum: with logits of 1e10 the exponential overflows.
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x)


def _hardmax(xp, x, axes: tuple[int, ...]):
    """One at the first maximum over `axes`, which are the last ones or a single one."""
    lead = x.shape[: axes[0]]
    shape = (*lead, -1, *x.shape[axes[-1] + 1 :])
    rows = xp.reshape(x, shape)
    best = xp.expand_dims(xp.argmax(rows, axis=len(lead)), len(lead))
    places = np.arange(rows.shape[len(lead)]).reshape((-1,) + (1,) * (rows.ndim - len(lead) - 1))
    places = places.reshape((1,) * len(lead) + places.shape)
    return xp.reshape((best == places).astype(x.dtype), x.shape)


def _register(op, function):
    def flattened(node, x):
        axis = axis_of(node, node.attrs.get("axis", 1), x.ndim)
        return function(namespace(x), x, tuple(range(axis, x.ndim)))

    def one_axis(node, x):
        axis = axis_of(node, node.attrs.get("axis", -1), x.ndim)
        return function(namespace(x), x, (axis,))

    flattened.__name__ = f"{function.__name__}_1"
    one_axis.__name__ = function.__name__
    lowering(op, since=1)(flattened)
    lowering(op, since=13)(one_axis)


for _op, _function in {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": _hardmax}.items():
    _register(_op, _function)
