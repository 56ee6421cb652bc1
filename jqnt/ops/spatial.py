"""Pooling."""

import jax.numpy as jnp

from jqnt.ops.registry import lowering

__all__ = ["global_average_pool"]


@lowering("GlobalAveragePool", since=1, layout="channels_last")
def global_average_pool(node, x):
    """https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html"""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True)
