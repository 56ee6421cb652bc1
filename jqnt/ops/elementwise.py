"""Arithmetic, comparison and logic of elements, with ONNX's broadcasting."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from jqnt.ops.namespace import aligned, namespace, numeric, pointwise
from jqnt.ops.registry import lowering

__all__ = ["gauss_error", "quotient", "root"]


def quotient(xp, x, y):
    """x / y; integers are divided with truncation towards zero."""
    if numeric(x.dtype) == "f":
        return xp.divide(x, y).astype(x.dtype)
    if xp is jnp:
        x, y = jnp.broadcast_arrays(x, y)
        return lax.div(x, y)
    floor = np.floor_divide(x, y)
    return floor + ((x % y != 0) & ((x < 0) != (y < 0))).astype(floor.dtype)


def _unary(name):
    def function(xp, node, x):
        return getattr(xp, name)(x)

    function.__name__ = name
    return function


def _binary(name):
    def function(xp, node, x, y):
        return getattr(xp, name)(x, y)

    function.__name__ = name
    return function


for _op, _name in {
    "Abs": "abs",
    "Acos": "arccos",
    "Acosh": "arccosh",
    "Asin": "arcsin",
    "Asinh": "arcsinh",
    "Atan": "arctan",
    "Atanh": "arctanh",
    "BitwiseNot": "invert",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "negative",
    "Not": "logical_not",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Tan": "tan",
    "Tanh": "tanh",
}.items():
    pointwise(_op)(_unary(_name))

_BROADCASTING = {
    "Add": "add",
    "And": "logical_and",
    "Equal": "equal",
    "Greater": "greater",
    "Less": "less",
    "Mul": "multiply",
    "Or": "logical_or",
    "Sub": "subtract",
    "Xor": "logical_xor",
}
for _op, _name in _BROADCASTING.items():
    pointwise(_op, since=7)(_binary(_name))

for _op, _name in {
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
    "GreaterOrEqual": "greater_equal",
    "LessOrEqual": "less_equal",
}.items():
    pointwise(_op)(_binary(_name))


@pointwise("Div", since=7)
def div(xp, node, x, y):
    """https://onnx.ai/onnx/operators/onnx__Div.html"""
    return quotient(xp, x, y)


def _before_opset_7(name):
    """Until opset 6 the second operand was placed by the attributes `broadcast` and `axis`."""

    def function(node, x, y):
        xp = namespace(x, y)
        axis = node.attrs.get("axis", -1)
        if node.attrs.get("broadcast", 0) and axis >= 0:
            y = xp.reshape(y, y.shape + (1,) * (x.ndim - axis - y.ndim))
        x, y = aligned(xp, x, y)
        result = quotient(xp, x, y) if name == "divide" else getattr(xp, name)(x, y)
        return np.asarray(result) if xp is np else result

    function.__name__ = f"{name}_1"
    return function


for _op, _name in {**_BROADCASTING, "Div": "divide", "Pow": "power"}.items():
    lowering(_op, since=1)(_before_opset_7(_name))


@pointwise("Clip", since=1)
def clip_1(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Clip.html (bounds are attributes)"""
    low, high = (node.attrs.get(key) for key in ("min", "max"))
    bounds = (None if bound is None else np.asarray(bound, x.dtype) for bound in (low, high))
    return _clip(xp, x, *bounds)


@pointwise("Clip", since=11)
def clip(xp, node, x, low=None, high=None):
    """https://onnx.ai/onnx/operators/onnx__Clip.html (bounds are inputs)"""
    return _clip(xp, x, low, high)


def _clip(xp, x, low, high):
    # clamp's gradient is zero on both bounds; maximum and minimum would split it evenly
    if xp is jnp and low is not None and high is not None:
        low, high = (jnp.reshape(b, ()) if b.size == 1 else b for b in (low, high))
        return lax.clamp(low.astype(x.dtype), x, high.astype(x.dtype))
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)


@jax.custom_jvp
def root(x):
    """sqrt(x) with derivative 0 at 0, where the true one is infinite: silence would give NaN."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals, tangents):
    y = root(*primals)
    slope = jnp.where(y == 0, 0, 0.5 / jnp.where(y == 0, 1, y)).astype(y.dtype)
    return y, slope * tangents[0]


@pointwise("Sqrt")
def sqrt(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Sqrt.html"""
    return root(x) if xp is jnp else np.sqrt(x)


@pointwise("Where")
def where(xp, node, condition, x, y):
    """https://onnx.ai/onnx/operators/onnx__Where.html"""
    return xp.where(condition, x, y)


@pointwise("Reciprocal")
def reciprocal(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Reciprocal.html"""
    return xp.divide(np.ones((), x.dtype), x) if x.ndim == 0 else 1 / x


@pointwise("Sum")
def sum_(xp, node, *arrays):
    """https://onnx.ai/onnx/operators/onnx__Sum.html"""
    return reduce(xp.add, arrays)


@pointwise("Mean")
def mean(xp, node, *arrays):
    """https://onnx.ai/onnx/operators/onnx__Mean.html"""
    return (reduce(xp.add, arrays) / len(arrays)).astype(arrays[0].dtype)


@pointwise("Max")
def max_(xp, node, *arrays):
    """https://onnx.ai/onnx/operators/onnx__Max.html"""
    return reduce(xp.maximum, arrays)


@pointwise("Min")
def min_(xp, node, *arrays):
    """https://onnx.ai/onnx/operators/onnx__Min.html"""
    return reduce(xp.minimum, arrays)


@pointwise("Pow", since=7)
def pow_(xp, node, x, y):
    """https://onnx.ai/onnx/operators/onnx__Pow.html"""
    if xp is jnp and isinstance(y, np.ndarray) and y.size == 1 and numeric(x.dtype) == "f":
        # the general power has a slow, at zero undefined derivative
        exponent = float(y.reshape(()))
        if exponent == 0.5:
            return _shaped_like(root(x), y)
        if exponent.is_integer() and abs(exponent) <= 64:
            return _shaped_like(lax.integer_pow(x, int(exponent)), y)
    return xp.power(x, y).astype(x.dtype)


def _shaped_like(x, y):
    return jnp.broadcast_to(x, np.broadcast_shapes(x.shape, y.shape))


@pointwise("Mod")
def mod(xp, node, x, y):
    """https://onnx.ai/onnx/operators/onnx__Mod.html"""
    return xp.fmod(x, y) if node.attrs.get("fmod", 0) else xp.mod(x, y)


@pointwise("BitShift")
def bit_shift(xp, node, x, shift):
    """https://onnx.ai/onnx/operators/onnx__BitShift.html"""
    left = node.attrs["direction"] == "LEFT"
    inside = (shift >= 0) & (shift < jnp.iinfo(x.dtype).bits)
    amount = xp.where(inside, shift, xp.zeros_like(shift))
    shifted = xp.left_shift(x, amount) if left else xp.right_shift(x, amount)
    beyond = xp.where(x < 0, -1, 0) if numeric(x.dtype) == "i" and not left else 0
    return xp.where(inside, shifted, xp.asarray(beyond).astype(x.dtype)).astype(x.dtype)


@pointwise("Erf")
def erf(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__Erf.html"""
    return gauss_error(xp, x)


def gauss_error(xp, x):
    """erf(x), in the type of x."""
    return lax.erf(x) if xp is jnp else special.erf(x.astype(np.float64)).astype(x.dtype)


@pointwise("IsInf")
def is_inf(xp, node, x):
    """https://onnx.ai/onnx/operators/onnx__IsInf.html"""
    found = xp.isinf(x)
    if not node.attrs.get("detect_positive", 1):
        found = found & (x < 0)
    if not node.attrs.get("detect_negative", 1):
        found = found & (x > 0)
    return found
