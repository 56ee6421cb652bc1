"""ncnn's int8 layers as its x86-64 kernels compute them: symmetric grids of -127 to 127."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jqnt.graph.ir import Node
from jqnt.integer.exact import exact_fma, exact_mul, to_float
from jqnt.integer.requantize import half_away, roundf
from jqnt.integer.rule import Finish, Out, Rule

__all__ = [
    "CONV",
    "CONV_REAL",
    "DENSE",
    "DENSE_REAL",
    "DEPTHWISE",
    "DEPTHWISE_3X3",
    "finish",
    "finish_avx2",
]


def finish(node: Node, weight: tuple[int, ...]) -> Finish:
    """The rules of a convolution whose weight has that shape, on processors with AVX-512.

    A group for each channel has kernels of its own, in which product and bias are two
    instructions unless the taps are 3 x 3, next to each other, at strides of 1 or 2.
    """
    found = finish_avx2(node, weight)
    near = set(node.attrs.get("dilations", (1,))) == {1}
    strides = tuple(node.attrs.get("strides", (1, 1)))
    if found.codes is DEPTHWISE and weight[2:] == (3, 3) and near and strides in ((1, 1), (2, 2)):
        return Finish(DEPTHWISE_3X3, CONV_REAL)
    return found


def finish_avx2(node: Node, weight: tuple[int, ...]) -> Finish:
    """Those on processors with AVX2 alone, whose depthwise kernels all take two instructions."""
    groups = node.attrs.get("group", 1)
    depthwise = groups > 1 and weight[:2] == (groups, 1)
    return Finish(DEPTHWISE, DENSE_REAL) if depthwise else Finish(CONV, CONV_REAL)


def _prepare(sx, sw, sy, bias, real_bias) -> dict:
    """ncnn keeps the reciprocals: r = f32(1 / (f32(1/sx) * f32(1/sw))), t = f32(1/sy)."""
    return {**_real_prepare(sx, sw, bias, real_bias), "top": np.float32(1) / np.float32(sy)}


def _real_prepare(sx, sw, bias, real_bias) -> dict:
    one = np.float32(1)
    rx, rw = one / np.float32(sx), one / np.asarray(sw, np.float32)
    return {"scale": one / (rx * rw), "bias": np.asarray(real_bias, np.float32)}


def _fused(acc: Any, table: dict) -> Float[Array, "..."]:
    """v = fma(f32(acc), r, bias)."""
    total = to_float(acc)
    scale, bias = (jnp.broadcast_to(table[k], total.shape) for k in ("scale", "bias"))
    return exact_fma(total, scale, bias)


def _separate(acc: Any, table: dict) -> Float[Array, "..."]:
    """v = f32(f32(acc) * r) + bias."""
    total = to_float(acc)
    return exact_mul(total, jnp.broadcast_to(table["scale"], total.shape)) + table["bias"]


def _requantized(real: Any, rounding: Any) -> Rule:
    """q = round(v * t), clipped."""

    def apply(acc: Any, table: dict, out: Out) -> Int[Array, "..."]:
        value = real(acc, table)
        return rounding(exact_mul(value, jnp.broadcast_to(table["top"], value.shape)), out)

    return Rule(_prepare, apply)


CONV = _requantized(_fused, half_away)
"""Convolutions, and those of several groups: product and bias fused."""

DEPTHWISE_3X3 = _requantized(_fused, roundf)
"""convolutiondepthwise_3x3_int8.h, with AVX-512."""

DEPTHWISE = _requantized(_separate, roundf)
"""All other depthwise convolutions."""

DENSE = _requantized(_separate, half_away)
"""InnerProduct and the Quantize behind it; that rounds the last n mod 4 values of a channel as
roundf does, which differs at 0.49999997 alone and is not emulated."""

CONV_REAL = Rule(_real_prepare, _fused)
DENSE_REAL = Rule(_real_prepare, _separate)
"""The same layers with a float output, v."""
