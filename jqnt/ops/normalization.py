"""Normalizations."""

import numpy as np
from jax import lax

from jqnt.ops.registry import lowering

__all__ = ["batch_normalization"]


@lowering("BatchNormalization", since=1, layout="channels_last")
def batch_normalization(node, x, scale, bias, mean, var):
    """scale * (x - mean) / sqrt(var + epsilon) + bias, over channels.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    epsilon = np.asarray(node.attrs.get("epsilon", 1e-5), var.dtype)
    factor = (scale * lax.rsqrt(var + epsilon)).astype(x.dtype)
    shift = (bias - mean * factor).astype(x.dtype)
    ones = (1,) * (x.ndim - 1)
    return x * factor.reshape(*ones, -1) + shift.reshape(*ones, -1)
