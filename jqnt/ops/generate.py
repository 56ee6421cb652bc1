"""Operators that make a tensor from numbers: constants, fills, ranges."""

import numpy as np

from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("Constant")
def constant(node):
    """https://onnx.ai/onnx/operators/onnx__Constant.html"""
    kinds = {"value": None, "value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    ((key, value),) = ((k, v) for k, v in node.attrs.items() if k in kinds)
    return np.asarray(value, kinds[key])


@lowering("ConstantOfShape", static=(0,))
def constant_of_shape(node, shape):
    """https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html"""
    value = np.asarray(node.attrs.get("value", np.zeros(1, np.float32)))
    sizes = tuple(static(node, "the shape", shape).tolist())
    # a view: a shape of gigabytes costs nothing until someone computes with it
    return np.broadcast_to(value.reshape(()), sizes)
