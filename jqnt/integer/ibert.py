"""Softmax and LayerNorm in integers alone: I-BERT (Kim et al. 2021), https://arxiv.org/abs/2101.01321.

Codes of 8 bits are too coarse for its polynomials, so both begin with a shift to the left.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.integer.requantize_fixed import finished, fixed_table, scaled_dyadic
from jqnt.integer.rule import Out, Rule, along_last

__all__ = ["LAYER_NORM", "SOFTMAX"]

_A, _B, _C = 0.3585, 1.353, 0.344
"""exp(p) = a (p + b)^2 + c on (-ln 2, 0]: eq. 13."""
_FINE = 2.0**-9
_SUM_BITS, _QUOTIENT_BITS, _GUARD_BITS = 30, 16, 8


def _softmax_prepare(x: Encoding, y: Encoding, length: int) -> dict:
    """Alg. 2 and 3's constants at the scale s = sx / 2^lift, at most 2^-9."""
    assert x.scale is not None and y.scale is not None
    scale = float(x.scale)
    lift = max(0, math.ceil(math.log2(scale / _FINE)))
    s = scale / 2**lift
    ln2, b, c = (math.floor(v) for v in (math.log(2) / s, _B / s, _C / (_A * s * s)))
    top = b * b + c
    if lift > 22 or top >= 2**_SUM_BITS:
        raise UnsupportedError(f"its input scale {scale:g} is not between 2^-14 and 2^13")
    room = _SUM_BITS - (top * length).bit_length()
    numbers = {"lift": lift, "ln2": ln2, "b": b, "c": c, "left": max(room, 0)}
    return {
        **{name: np.int32(value) for name, value in numbers.items()},
        "right": np.int32(max(-room, 0)),
        "y": fixed_table(np.asarray(2.0**-_QUOTIENT_BITS / np.float64(y.scale))),
    }


def _softmax_apply(codes: Int[Array, "... n"], table: dict, out: Out) -> Int[Array, "... n"]:
    """d = (q - max) 2^lift, z = floor(-d / ln 2), p = d + z ln 2, e = ((p + b)^2 + c) / 2^z;
    y = e / sum(e), a quotient of 16 bits."""
    d = (codes - codes.max(-1, keepdims=True)) << table["lift"]
    z = -d // table["ln2"]
    p = d + z * table["ln2"]
    e = (p + table["b"]) ** 2 + table["c"]
    e = (e << table["left"]) >> jnp.minimum(z + table["right"], 31)
    quotient = _quotient(e, e.sum(-1, keepdims=True, dtype=jnp.int32))
    return finished(scaled_dyadic(quotient, table["y"]), out)


def _quotient(e: Int[Array, "..."], total: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(2^16 e / total) for 0 <= e <= total < 2^30, one bit after the other."""
    whole = e // total
    rest = e - whole * total
    for _ in range(_QUOTIENT_BITS):
        rest = rest << 1
        bit = (rest >= total).astype(jnp.int32)
        rest, whole = rest - bit * total, (whole << 1) + bit
    return whole


def _norm_prepare(
    x: Encoding, y: Encoding, gain: np.ndarray, bias: np.ndarray, epsilon: float
) -> dict:
    """The lift that leaves the sum of squares 30 bits; gain and bias on a grid of sy / 2^8."""
    assert isinstance(x.format, Integer) and x.scale is not None and y.scale is not None
    length = gain.size
    lift = (29 - math.ceil(math.log2(length)) - 2 * x.format.bits) // 2
    if lift < 0:
        raise UnsupportedError(f"sums of {length} squares of {x.format.name} leave 30 bits")
    s, step = float(x.scale) / 2**lift, float(np.float64(y.scale)) / 2**_GUARD_BITS
    wide = np.float64(gain) * math.sqrt(length) / 2**30 / step
    moved = np.clip(np.rint(np.float64(bias) / step), -(2**29), 2**29)
    return {
        "lift": np.int32(lift),
        "epsilon": np.int32(min(math.floor(epsilon * length / (s * s)), 2**29)),
        "sign": np.where(gain < 0, -1, 1).astype(np.int32),
        "gain": fixed_table(np.abs(wide)),
        "bias": moved.astype(np.int32),
        "y": fixed_table(np.asarray(2.0**-_GUARD_BITS)),
    }


def _norm_apply(codes: Int[Array, "... n"], table: dict, out: Out) -> Int[Array, "... n"]:
    """d = q 2^lift - round(mean), v = sum(d^2) + eps, u = d floor(2^30 / floor(sqrt(v))), which is
    (x - mean) / deviation in units of sqrt(n) / 2^30; y = u gain + bias (section 3.6)."""
    table, n = along_last(table, codes.ndim), codes.shape[-1]
    q = codes << table["lift"]
    d = q - (2 * q.sum(-1, keepdims=True) + n) // (2 * n)
    v = (d * d).sum(-1, keepdims=True, dtype=jnp.int32) + table["epsilon"]
    u = d * (jnp.int32(2**30) // jnp.maximum(_root(v), 1))
    scaled = jnp.clip(scaled_dyadic(u * table["sign"], table["gain"]), -(2**29), 2**29)
    return finished(scaled_dyadic(scaled + table["bias"], table["y"]), out)


def _root(v: Int[Array, "..."]) -> Int[Array, "..."]:
    """floor(sqrt(v)), what alg. 4 converges to, one bit after the other."""
    wide: Any = v.astype(jnp.uint32)
    root = jnp.zeros_like(wide)
    for place in reversed(range(16)):
        trial = root | jnp.uint32(1 << place)
        root = jnp.where(trial * trial <= wide, trial, root)
    return root.astype(jnp.int32)


SOFTMAX = Rule(_softmax_prepare, _softmax_apply)
LAYER_NORM = Rule(_norm_prepare, _norm_apply)
