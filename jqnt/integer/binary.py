"""Rules that join two code tensors: sums and products."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.encodings import Encoding
from jqnt.integer.exact import exact_fma, exact_mul, fma32
from jqnt.integer.rule import Out, Rule

__all__ = ["FLOAT_MUL", "FUSED_ADD"]


def _fused_add_prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
    """ra = sa / sy, rb = sb / sy; k = zy - fma(za, ra, rb * zb), all float32."""
    (sa, za), (sb, zb), (sy, zy) = map(_scalars, (a, b, y))
    ra, rb = sa / sy, sb / sy
    return {"ra": ra, "rb": rb, "fixed": zy - fma32(za, ra, rb * zb)}


def _fused_add_apply(a: Int[Array, "..."], b: Int[Array, "..."], table: dict, out: Out):
    """q = rint(fma(a, ra, fma(b, rb, k))): the zero point is inside the rounding."""
    inner = exact_fma(b.astype(jnp.float32), table["rb"], table["fixed"])
    return _clip_round(exact_fma(a.astype(jnp.float32), table["ra"], inner), out)


def _float_mul_prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
    (sa, za), (sb, zb), (sy, zy) = map(_scalars, (a, b, y))
    return {"za": np.int32(za), "zb": np.int32(zb), "scale": sa * sb / sy, "zy": zy}


def _float_mul_apply(a: Int[Array, "..."], b: Int[Array, "..."], table: dict, out: Out):
    """q = rint(f32((a - za)(b - zb)) * f32(sa * sb / sy) + zy), two roundings."""
    product = ((a - table["za"]) * (b - table["zb"])).astype(jnp.float32)
    return _clip_round(exact_mul(product, table["scale"]) + table["zy"], out)


def _scalars(encoding: Encoding) -> tuple[np.float32, np.float32]:
    assert encoding.scale is not None and encoding.zero_point is not None
    return np.float32(encoding.scale), np.float32(encoding.zero_point)


def _clip_round(value: Any, out: Out) -> Int[Array, "..."]:
    low, high = (jnp.asarray(v, jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32)


FUSED_ADD = Rule(_fused_add_prepare, _fused_add_apply)
"""onnxruntime's QLinearAdd on x86-64 with AVX2: two fused multiply-adds in float32."""

FLOAT_MUL = Rule(_float_mul_prepare, _float_mul_apply)
"""onnxruntime's QLinearMul on x86-64."""
