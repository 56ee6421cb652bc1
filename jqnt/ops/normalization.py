"""Normalizations by moments or norms."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.registry import lowering
from jqnt.ops.window import Window, slide

__all__ = [
    "batch_normalization",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "local_response_normalization",
    "lp_normalization",
    "rms_normalization",
]


@lowering("BatchNormalization", since=1, layout="channels_last")
def batch_normalization(node, x, scale, bias, mean, var):
    """scale * (x - mean) / sqrt(var + epsilon) + bias, over channels.

    In training mode by the batch's own moments, with the moving ones as further outputs.
    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if not node.attrs.get("training_mode", 0):
        return _scaled(node, x, scale, bias, mean, var)
    axes = tuple(range(x.ndim - 1))
    momentum = np.asarray(node.attrs.get("momentum", 0.9), mean.dtype)
    batch_mean, batch_var = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
    y = _scaled(node, x, scale, bias, batch_mean, batch_var)
    moving = (
        old * momentum + new.astype(old.dtype) * (1 - momentum)
        for old, new in ((mean, batch_mean), (var, batch_var))
    )
    return (y, *moving)


@lowering("InstanceNormalization", since=1, layout="channels_last")
def instance_normalization(node, x, scale, bias):
    """Over the spatial axes: https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html"""
    axes = tuple(range(1, x.ndim - 1))
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), x.dtype)
    return (x - mean) * lax.rsqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)


@lowering("LayerNormalization", since=17)
@lowering("LayerNormalization", since=1, domain="com.microsoft")
def layer_normalization(node, x, scale, bias=None):
    """Over the axes from `axis` on; further outputs are mean and 1/standard deviation.

    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
    """
    axes = _from_axis(node, x.ndim)
    # stash_type 1: moments in float32 whatever the type of x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axes, keepdims=True)
    centred = wide - mean
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), wide.dtype)
    inverse = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + epsilon)
    y = (centred * inverse).astype(x.dtype) * _ranked(scale, x.ndim)
    y = y if bias is None else y + _ranked(bias, x.ndim)
    return y, mean, inverse


@lowering("RMSNormalization", since=23)
def rms_normalization(node, x, scale):
    """x / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on.

    https://onnx.ai/onnx/operators/onnx__RMSNormalization.html
    """
    axes = _from_axis(node, x.ndim)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), wide.dtype)
    inverse = lax.rsqrt(jnp.mean(wide * wide, axes, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype) * _ranked(scale, x.ndim)


@lowering("GroupNormalization", since=21)
def group_normalization(node, x, scale, bias):
    """Over each of `num_groups` groups of channels; scale and bias per channel.

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    y = _grouped(node, x)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return y.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)


@lowering("GroupNormalization", since=18)
def group_normalization_18(node, x, scale, bias):
    """As above, with scale and bias per group."""
    y = _grouped(node, x)
    shape = (1, -1) + (1,) * (y.ndim - 2)
    return (y * scale.reshape(shape) + bias.reshape(shape)).reshape(x.shape)


@lowering("LRN", since=1, layout="channels_last")
def local_response_normalization(node, x):
    """x / (bias + alpha / size * sum x^2)^beta, the sum over `size` neighbouring channels.

    https://onnx.ai/onnx/operators/onnx__LRN.html
    """
    size = node.attrs["size"]
    before = (size - 1) // 2
    squares = (x * x).reshape(-1, x.shape[-1], 1)
    view = Window((size,), (1,), (1,), ((before, size - 1 - before),))
    total = slide(squares, view, (x.shape[-1],), jnp.add, 0).reshape(x.shape)
    alpha, beta = node.attrs.get("alpha", 1e-4), node.attrs.get("beta", 0.75)
    base = np.asarray(node.attrs.get("bias", 1.0), x.dtype)
    return x / (base + np.asarray(alpha / size, x.dtype) * total) ** np.asarray(beta, x.dtype)


@lowering("LpNormalization", since=1)
def lp_normalization(node, x):
    """x / ||x||_p along `axis`, zero where the norm is zero.

    https://onnx.ai/onnx/operators/onnx__LpNormalization.html
    """
    axis, p = node.attrs.get("axis", -1), node.attrs.get("p", 2)
    if p == 1:
        norm = jnp.sum(jnp.abs(x), axis, keepdims=True)
    else:
        norm = jnp.sum(x * x, axis, keepdims=True)
        norm = jnp.where(norm > 0, jnp.sqrt(jnp.where(norm > 0, norm, 1)), 0)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0)


@lowering("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node, x):
    """(x - mean) / (standard deviation + 1e-9), by default over all axes but channels.

    https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html
    """
    axes = tuple(node.attrs.get("axes", (0, 2, 3)))
    mean = jnp.mean(x, axes, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) - mean * mean)
    return (x - mean) / (deviation + np.asarray(1e-9, x.dtype))


@lowering("SkipLayerNormalization", since=1, domain="com.microsoft")
def skip_layer_normalization(node, x, skip, gamma, beta=None, bias=None):
    """Layer normalization of x + skip + bias; output 3 is that sum.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    total = x + skip if x.ndim == skip.ndim else x + skip[None]
    if bias is not None:
        total = total + _ranked(bias, x.ndim)
    attrs = {"epsilon": node.attrs.get("epsilon", 1e-12)}
    y, mean, inverse = layer_normalization(node.replace(attrs=attrs), total, gamma, beta)
    return y, mean, inverse, total


def _scaled(node, x, scale, bias, mean, var):
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), var.dtype)
    factor = scale * lax.rsqrt(var + epsilon).astype(scale.dtype)
    shift = bias - mean.astype(factor.dtype) * factor
    shape = (1,) * (x.ndim - 1) + (-1,)
    return x * factor.astype(x.dtype).reshape(shape) + shift.astype(x.dtype).reshape(shape)


def _grouped(node, x):
    """(N, groups, the rest), each group with mean 0 and variance 1."""
    groups = node.attrs["num_groups"]
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise ModelError(
            f"GroupNormalization node {node.name!r}: {groups} groups of shape {list(x.shape)}"
        )
    y = x.reshape(x.shape[0], groups, -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = y - jnp.mean(y, -1, keepdims=True)
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), y.dtype)
    return (centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + epsilon)).astype(x.dtype)


def _from_axis(node, rank: int) -> tuple[int, ...]:
    axis = node.attrs.get("axis", -1)
    if not -rank <= axis < rank:
        raise ModelError(f"{node.op} node {node.name!r}: axis {axis} is outside rank {rank}")
    return tuple(range(axis % rank, rank))


def _ranked(array, rank: int):
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
