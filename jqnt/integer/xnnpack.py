"""Rules of XNNPACK, which LiteRT runs by default: sums by shifted integers, moves in Q8, means.

https://github.com/google/XNNPACK, src/microparams-init.c and src/qs8-vadd, qs8-vmul, qs8-vcvt.
"""

import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.integer.exact import exact_mul
from jqnt.integer.rule import Out, Rule, container

__all__ = ["ADD", "CONVERT", "MEAN", "MUL", "SUB"]


def _scalars(encoding: Encoding) -> tuple[np.float32, np.int32]:
    assert encoding.scale is not None and encoding.zero_point is not None
    return np.float32(encoding.scale), np.int32(encoding.zero_point)


def _add_prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
    """shift = 20 - floor(log2 max(ra, rb)); multipliers round(r * 2^shift), of 21 bits."""
    (sa, za), (sb, zb), (sy, _) = map(_scalars, (a, b, y))
    ra, rb = sa / sy, sb / sy
    if not 2.0**-10 <= min(ra, rb) <= max(ra, rb) < 2.0**8:
        raise UnsupportedError(f"XNNPACK adds scales of ratio 2^-10 to 2^8, not {ra:g} and {rb:g}")
    shift = 20 - (int(np.frexp(max(ra, rb))[1]) - 1)
    ma, mb = (np.int32(np.rint(np.ldexp(r, shift))) for r in (ra, rb))
    return {"ma": ma, "mb": mb, "za": za, "zb": zb, "shift": np.int32(shift)}


def _sub_prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
    table = _add_prepare(a, b, y)
    return {**table, "mb": -table["mb"]}


def _add_apply(a, b, table: dict, out: Out):
    """q = (ma (a - za) + mb (b - zb) + 2^(shift - 1)) >> shift, then the zero point."""
    half = jnp.int32(1) << (table["shift"] - 1)
    total = (a - table["za"]) * table["ma"] + (b - table["zb"]) * table["mb"] + half
    return _clamped(total >> table["shift"], out)


def _mul_prepare(a: Encoding, b: Encoding, y: Encoding) -> dict:
    (sa, za), (sb, zb), (sy, _) = map(_scalars, (a, b, y))
    return {"za": za, "zb": zb, "scale": sa * sb / sy}


def _mul_apply(a, b, table: dict, out: Out):
    """q = rint(f32((a - za)(b - zb)) * f32(sa * sb / sy)) + zy: the zero point after rounding."""
    product = ((a - table["za"]) * (b - table["zb"])).astype(jnp.float32)
    value = exact_mul(product, table["scale"])
    low, high = (jnp.asarray(v - out.zero_point, jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32) + out.zero_point


def _convert_prepare(sx, zx, sy) -> dict:
    """m = round(256 * sx / sy)."""
    ratio = np.float32(sx) / np.float32(sy)
    if not 2.0**-8 <= ratio <= 2.0**7:
        raise UnsupportedError(f"XNNPACK converts scales of ratio 2^-8 to 2^7, not {ratio:g}")
    return {"multiplier": np.int32(np.rint(np.float32(256) * ratio)), "zx": np.int32(zx)}


def _convert_apply(codes, table: dict, out: Out):
    """q = (m (x - zx) + 128) >> 8, then the zero point."""
    return _clamped(((codes - table["zx"]) * table["multiplier"] + 128) >> 8, out)


def _mean_prepare(x: Encoding, y: Encoding) -> dict:
    """sx / sy; unsigned codes are int8 ones plus a shift."""
    (sx, zx), (sy, _) = map(_scalars, (x, y))
    shifts = {f"shift_{k}": np.int32(_shift(e)) for k, e in (("x", x), ("y", y))}
    return {**shifts, "ratio": sx / sy, "zx": zx - shifts["shift_x"]}


def _mean_apply(total, count: int, table: dict, out: Out):
    """q = rint(f32(sum x) * s + f32(zy - f32(n zx) * s)), s = f32(sx / sy) * f32(1 / n), of int8
    codes: the zero points are inside the rounding."""
    scale = exact_mul(jnp.asarray(table["ratio"]), jnp.asarray(np.float32(1) / np.float32(count)))
    zx, zy = (
        v.astype(jnp.float32) for v in (count * table["zx"], out.zero_point - table["shift_y"])
    )
    value = exact_mul((total - count * table["shift_x"]).astype(jnp.float32), scale)
    value = value + (zy - exact_mul(zx, scale))
    low, high = ((v - table["shift_y"]).astype(jnp.float32) for v in (out.low, out.high))
    return jnp.round(jnp.clip(value, low, high)).astype(jnp.int32) + table["shift_y"]


def _shift(encoding: Encoding) -> int:
    assert isinstance(encoding.format, Integer)
    return container(encoding.format).shift


def _clamped(x, out: Out):
    return jnp.clip(x, out.low - out.zero_point, out.high - out.zero_point) + out.zero_point


ADD = Rule(_add_prepare, _add_apply)
SUB = Rule(_sub_prepare, _add_apply)
MUL = Rule(_mul_prepare, _mul_apply)
CONVERT = Rule(_convert_prepare, _convert_apply)
MEAN = Rule(_mean_prepare, _mean_apply)
