"""Rules that join two code tensors in float32: dequantize both, operate, quantize."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jqnt.affine import divide
from jqnt.encodings import Encoding
from jqnt.integer.exact import exact_mul
from jqnt.integer.rule import Out, Rule

__all__ = ["DIFFERENCE", "PRODUCT", "SUM", "operands"]


def operands(a: Int[Array, "..."], b: Int[Array, "..."], table: dict) -> list[Float[Array, "..."]]:
    """[f32(a - za) * sa, f32(b - zb) * sb] of codes; `table` has za, sa, zb and sb."""
    return [
        exact_mul((x - table[f"z{k}"]).astype(jnp.float32), jnp.asarray(table[f"s{k}"]))
        for k, x in (("a", a), ("b", b))
    ]


def _joined(operate: Callable[[Any, Any], Any]) -> Rule:
    def prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
        scales = {f"s{k}": np.float32(e.scale) for k, e in zip("aby", (a, b, y), strict=True)}
        return {**scales, "za": np.int32(a.zero_point), "zb": np.int32(b.zero_point)}  # pyright: ignore

    def apply(a: Int[Array, "..."], b: Int[Array, "..."], table: dict, out: Out):
        """q = rint(op(f32(a - za) * sa, f32(b - zb) * sb) / sy) + zy."""
        value = divide(operate(*operands(a, b, table)), jnp.asarray(table["sy"]))
        low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
        return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32) + out.zero_point

    return Rule(prepare, apply)


SUM = _joined(lambda a, b: a + b)
DIFFERENCE = _joined(lambda a, b: a - b)
PRODUCT = _joined(exact_mul)
"""onnxruntime's float operators between DequantizeLinear and QuantizeLinear: what it runs where it
has no integer kernel (Sub, and 16 bits)."""
