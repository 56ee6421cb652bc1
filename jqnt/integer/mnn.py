"""MNN's int8 operators as its x86-64 kernels compute them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.integer.binary_float import operands
from jqnt.integer.exact import exact_mul, to_float
from jqnt.integer.requantize import half_away, roundf
from jqnt.integer.rule import Finish, Out, Rule, Zeros

__all__ = ["ADD", "CONV", "DEPTHWISE", "MEAN", "MUL", "SUB", "WINDOW_MEAN", "finish"]

_OFFSET = 128
_LEAST_SCALE = np.float32(1e-6)


def finish(node: Node, weight: tuple[int, ...]) -> Finish:
    """The rules of a convolution whose weight has that shape: one input channel of several for
    each output has kernels of its own."""
    return Finish(DEPTHWISE if node.attrs.get("group", 1) > 1 and weight[1] == 1 else CONV)


def _conv_prepare(sx, sw, sy, bias, real_bias, zeros: Zeros) -> dict:
    """The kernels take x + 128, so that sum(w) * (zx + 128) too many is in the sums:
    b = (bias - f32(sum w) * sw * f32(zx + 128) * sx) / sy + zy, float32 throughout."""
    sx, sw, sy = np.float32(sx), np.asarray(sw, np.float32), np.float32(sy)
    moved = zeros.sums.astype(np.float32) * sw * np.float32(zeros.x + _OFFSET) * sx
    real = (np.asarray(real_bias, np.float32) - moved) / sy + np.float32(zeros.y)
    return {"scale": sw, "ratio": sx / sy, "bias": real, "shift": _shift(zeros)}


def _conv_apply(acc: Int[Array, "..."], table: dict, out: Out) -> Int[Array, "..."]:
    """v = f32(acc + shift) * sw * f32(sx / sy) + b, three roundings; q = half away(v)."""
    total = to_float(acc + table["shift"])
    product = exact_mul(total, jnp.broadcast_to(table["scale"], total.shape))
    product = exact_mul(product, jnp.broadcast_to(table["ratio"], total.shape))
    return _codes(product + table["bias"], out)


def _depthwise_prepare(sx, sw, sy, bias, real_bias, zeros: Zeros) -> dict:
    """s = sw * f32(sx / sy); trunc(bias / (sx sw)) and trunc(zy / s) join the accumulator."""
    sx, sy = np.float32(sx), np.float32(sy)
    sw = np.maximum(np.asarray(sw, np.float32), _LEAST_SCALE)
    scale = sw * (sx / sy)
    whole = np.trunc(np.asarray(real_bias, np.float32) / (sx * sw))
    moved = zeros.sums.astype(np.float32) * np.float32(zeros.x + _OFFSET)
    total = np.trunc(whole - moved + np.trunc(np.float32(zeros.y) / scale))
    return {"scale": scale, "bias": total.astype(np.int64).astype(np.int32) + _shift(zeros)}


def _depthwise_apply(acc: Int[Array, "..."], table: dict, out: Out) -> Int[Array, "..."]:
    """q = half away(f32(acc + bias) * s)."""
    total = to_float(acc + table["bias"])
    return _codes(exact_mul(total, jnp.broadcast_to(table["scale"], total.shape)), out)


def _shift(zeros: Zeros) -> np.ndarray:
    """What sum((x + 128) w) has more than sum((x - zx) w)."""
    return ((zeros.x + _OFFSET) * zeros.sums.astype(np.int64)).astype(np.int32)


def _codes(value: Any, out: Out) -> Int[Array, "..."]:
    """The zero point is in the sum already."""
    return half_away(value, out._replace(zero_point=np.int32(0)))


def _joined(operate: Callable[[Any, Any], Any]) -> Rule:
    def prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
        numbers = {f"s{k}": np.float32(e.scale) for k, e in (("a", a), ("b", b))}  # pyright: ignore
        zeros = {f"z{k}": np.int32(e.zero_point) for k, e in (("a", a), ("b", b))}  # pyright: ignore
        return {**numbers, **zeros, "inverse": np.float32(1) / np.float32(y.scale)}  # pyright: ignore

    def apply(a: Int[Array, "..."], b: Int[Array, "..."], table: dict, out: Out):
        """q = half away(op(f32(a - za) * sa, f32(b - zb) * sb) * f32(1 / sy)) + zy."""
        value = exact_mul(operate(*operands(a, b, table)), jnp.asarray(table["inverse"]))
        return roundf(value, out)

    return Rule(prepare, apply)


def _mean_prepare(x: Encoding, y: Encoding) -> dict:
    """Pools keep their input's grid; their padding is -128."""
    if not x.same_grid(y):
        raise UnsupportedError("MNN's int8 pools keep their input's grid; share the encodings")
    return {"zx": np.int32(-_OFFSET)}


def _mean_apply(total: Any, count: int, table: dict, out: Out) -> Int[Array, "..."]:
    """q = (sum(x + 128) * floor(2^24 / n)) >> 24 - 128; `total` is the sum of x."""
    return _quotient(total + _OFFSET * count, jnp.int32(count), out)


def _window_apply(
    parts: Sequence[Int[Array, "..."]], count: Int[Array, "..."], table: dict, out: Out
):
    return _quotient(sum(part + _OFFSET for part in parts), count, out)


def _quotient(total: Any, count: Any, out: Out) -> Int[Array, "..."]:
    moved = total.astype(jnp.uint32)
    whole = (moved * (jnp.uint32(2**24) // count.astype(jnp.uint32))) >> 24
    return jnp.clip(whole.astype(jnp.int32) - _OFFSET, out.low, out.high)


ADD = _joined(lambda a, b: a + b)
SUB = _joined(lambda a, b: a - b)
MUL = _joined(exact_mul)
"""MNN 3.6.1: MNNBinaryAddInt8 and kin, which run where both inputs and the output are int8."""

MEAN = Rule(_mean_prepare, _mean_apply)
WINDOW_MEAN = Rule(_mean_prepare, _window_apply)
"""MNN 3.6.1: CPUPoolInt8.cpp; padding never counts."""

CONV = Rule(_conv_prepare, _conv_apply)
"""MNN 3.6.1: CPUConvolution.cpp updateInputOutputScale, x86_x64 GemmInt8 (AVX2 and AVX-512)."""

DEPTHWISE = Rule(_depthwise_prepare, _depthwise_apply)
"""MNN 3.6.1: the same with mOriginScale, MNNLineDepthWiseInt8AddBiasScaleUnit."""
