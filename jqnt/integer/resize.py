"""Rules for interpolating codes between pixels: fixed-point weights, and float32 ones."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.integer.exact import exact_mul
from jqnt.integer.requantize import quantize_float
from jqnt.integer.rule import Out, Rule, container
from jqnt.ops.resize import Axis

__all__ = ["COORDINATES", "FIXED_DOUBLE", "FIXED_SINGLE", "FLOAT"]

COORDINATES = ("half_pixel", "align_corners", "asymmetric")
"""The coordinate transformations that these rules know."""

_BITS = 10
_ONE = 1 << _BITS


def _prepare(x: Encoding, y: Encoding) -> dict:
    if not x.same_grid(y):
        raise UnsupportedError("resizing keeps its input's grid; share the encodings")
    assert isinstance(x.format, Integer)
    if x.format.bits > 8:
        raise UnsupportedError(f"resizing takes codes of at most 8 bits, not {x.format.name}")
    return {"shift": np.int32(container(x.format).shift)}


def _fixed(halve: Callable[[Int[Array, "..."]], Int[Array, "..."]]) -> Rule:
    """The codes as int8; sum of code * wy * wx over the four pixels, divided by 2^20."""

    def apply(x: Int[Array, "n h w c"], rows: Axis, columns: Axis, mode: str, table, out: Out):
        value = x - table["shift"]
        for axis, entry in ((1, rows), (2, columns)):
            lower, upper, part = _places(entry, mode)
            shape = [-1 if d == axis else 1 for d in range(4)]
            below, above = (jnp.take(value, at, axis=axis) for at in (lower, upper))
            weight = jnp.asarray(part.reshape(shape))
            value = below * (_ONE - weight) + above * weight
        return jnp.clip(halve(value) + table["shift"], out.low, out.high)

    return Rule(_prepare, apply)


def _places(entry: Axis, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixel before, pixel after, weight of the latter) in steps of 2^-10, from the sizes alone."""
    before, after = entry.size, entry.out
    if mode == "align_corners" and after > 1:
        before, after = before - 1, after - 1
    elif abs(entry.scale * before - after) > 1e-3:
        raise UnsupportedError(
            f"it resizes by the ratio of the sizes, {entry.size} to {entry.out}, not by "
            f"{entry.scale:g}; give sizes"
        )
    scale = (_ONE * before + after // 2) // after
    at = np.arange(entry.out, dtype=np.int32) * np.int32(scale)
    if mode == "half_pixel":
        at = at + np.int32(scale // 2 - _ONE // 2)
    lower = np.maximum(at, 0) // _ONE
    upper = np.minimum(np.maximum(at + _ONE - 1, 0) // _ONE, entry.size - 1)
    if lower.max() >= entry.size:
        raise UnsupportedError(
            f"its steps of 2^-{_BITS} run out of the {entry.size} pixels on the way to {entry.out}"
        )
    return lower, upper, at - _ONE * lower


def _half_away(x: Int[Array, "..."]) -> Int[Array, "..."]:
    half = 1 << (2 * _BITS - 1)
    return jnp.sign(x) * ((jnp.abs(x) + half) >> (2 * _BITS))


def _half_up(x: Int[Array, "..."]) -> Int[Array, "..."]:
    return (x + (1 << (2 * _BITS - 1))) >> (2 * _BITS)


_ORIGINAL: Mapping[str, Callable[[np.ndarray, Axis], np.ndarray]] = {
    "asymmetric": lambda x, e: x / np.float32(e.scale),
    "half_pixel": lambda x, e: (x + np.float32(0.5)) / np.float32(e.scale) - np.float32(0.5),
    "align_corners": lambda x, e: x * np.float32(e.size - 1) / np.float32(max(e.out - 1, 1)),
}


def _parts(entry: Axis, mode: str) -> tuple[np.ndarray, ...]:
    """(pixel before, pixel after, weights of both) in float32."""
    at = _ORIGINAL[mode](np.arange(entry.out, dtype=np.float32), entry)
    at = np.clip(at, np.float32(0), np.float32(entry.size - 1))
    lower = np.minimum(at.astype(np.int32), entry.size - 1)
    upper = np.minimum(lower + 1, entry.size - 1)
    above, below = np.abs(at - lower.astype(np.float32)), np.abs(at - upper.astype(np.float32))
    same = lower == upper
    half = np.float32(0.5)
    return lower, upper, np.where(same, half, below), np.where(same, half, above)


def _float_prepare(x: Encoding, y: Encoding) -> dict:
    assert x.scale is not None and x.zero_point is not None and y.scale is not None
    return {"sx": x.scale, "zx": x.zero_point.astype(np.int32), "sy": y.scale}


def _float_apply(x: Int[Array, "n h w c"], rows: Axis, columns: Axis, mode: str, table, out: Out):
    """v = ((wx wy) v00 + (wx' wy) v01) + (wx wy') v10) + (wx' wy') v11 of v = f32(x - zx) * sx, all
    float32; q = rint(v / sy) + zy."""
    real = exact_mul((x - table["zx"]).astype(jnp.float32), jnp.asarray(table["sx"]))
    y0, y1, *wy = _parts(rows, mode)
    x0, x1, *wx = _parts(columns, mode)
    total = None
    for at_y, weight_y in zip((y0, y1), wy, strict=True):
        line = jnp.take(real, at_y, axis=1)
        for at_x, weight_x in zip((x0, x1), wx, strict=True):
            weight = jnp.asarray((weight_x[None, :] * weight_y[:, None])[None, :, :, None])
            part = jnp.take(line, at_x, axis=2)
            part = exact_mul(part, jnp.broadcast_to(weight, part.shape))
            total = part if total is None else total + part
    assert total is not None
    return quantize_float(total, table["sy"], out)


FIXED_DOUBLE = _fixed(_half_away)
FIXED_SINGLE = _fixed(_half_up)
"""ResizeBilinearInteger in tflite/kernels/internal/reference/resize_bilinear.h."""

FLOAT = Rule(_float_prepare, _float_apply)
"""onnxruntime's float32 Resize between DequantizeLinear and QuantizeLinear, as it runs QDQ models
(UpsampleBilinear in core/providers/cpu/tensor/upsample.h). Codes given to Resize itself would be
truncated, not rounded."""
