"""Rules for means of codes: over everything spatial, and over windows."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jqnt.affine import divide
from jqnt.encodings import Encoding
from jqnt.integer.exact import exact_mul, to_float
from jqnt.integer.rule import Out, Rule

__all__ = ["FLOAT", "FLOAT_WINDOW", "in_order"]


def _prepare(x: Encoding, y: Encoding) -> dict:
    assert x.scale is not None and x.zero_point is not None and y.scale is not None
    return {"sx": x.scale, "zx": x.zero_point.astype(np.int32), "sy": y.scale}


def _float_apply(total: Int[Array, "..."], count: int, table: dict, out: Out):
    """q = rint(f32(sum(x - zx)) * f32(sx / f32(sy * n))) + zy; `total` is the sum of x."""
    scale = divide(jnp.asarray(table["sx"]), exact_mul(table["sy"], jnp.float32(count)))
    value = exact_mul(to_float(total - count * table["zx"]), scale)
    low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32) + out.zero_point


def _window_apply(
    parts: Sequence[Int[Array, "..."]], count: Int[Array, "..."], table: dict, out: Out
):
    """q = rint(f32(mean) / sy + zy), the mean summed in float32 in the window's order.

    `parts` are the codes at each place of the window, zero points outside; `count` divides.
    """
    total = None
    for part in parts:
        real = exact_mul((part - table["zx"]).astype(jnp.float32), table["sx"])
        total = real if total is None else total + real
    assert total is not None
    mean = divide(total, count.astype(jnp.float32))
    value = divide(mean, table["sy"]) + jnp.asarray(out.zero_point, jnp.float32)
    low, high = (jnp.asarray(v, jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32)


def in_order(x: Float[Array, "n *space c"]) -> Float[Array, "n *ones c"]:
    """The mean over space of a channels-last float array, pixel after pixel in float32."""
    pixels = jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 0)
    total, _ = lax.scan(lambda s, p: (s + p, None), jnp.zeros_like(pixels[0]), pixels)
    mean = divide(total, jnp.float32(pixels.shape[0]))
    return mean.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


FLOAT = Rule(_prepare, _float_apply)
"""onnxruntime's QLinearGlobalAveragePool on x86-64."""

FLOAT_WINDOW = Rule(_prepare, _window_apply)
"""onnxruntime's QLinearAveragePool: float32 sums of dequantized codes, then QuantizeLinear."""
