"""Conversions between element types."""

from jqnt.ops.namespace import dtype_of, pointwise

__all__ = []


@pointwise("Cast")
def cast(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Cast.html"""
    return x.astype(dtype_of(xp, node.attrs["to"]))
