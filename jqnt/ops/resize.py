"""Resize and Upsample: interpolation axis by axis, with weights known before the trace."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.registry import lowering, static

__all__ = ["Axis", "plan_of", "resize", "upsample"]

_PRODUCT_FROM = 8
"""Taps from which on a matrix product beats gathered slices."""


class Axis(NamedTuple):
    """One axis to resize: sizes before and after, their real ratio, its region of interest."""

    axis: int
    size: int
    out: int
    scale: float
    start: float
    end: float


@lowering("Resize", since=11, layout="channels_last", static=(1, 2, 3))
def resize(node, x, roi=None, scales=None, sizes=None):
    """https://onnx.ai/onnx/operators/onnx__Resize.html"""
    rank = x.ndim
    shape = (x.shape[0], x.shape[-1], *x.shape[1:-1]) if rank > 2 else x.shape
    moved = (0, rank - 1, *range(1, rank - 1)) if rank > 2 else range(rank)
    plan = plan_of(node, shape, roi, scales, sizes)
    return _resized(node, x, [entry._replace(axis=moved[entry.axis]) for entry in plan])


def plan_of(node, shape, roi=None, scales=None, sizes=None) -> list[Axis]:
    """What becomes of each axis that a Resize node names, of a tensor of that ONNX shape.

    ModelError where roi, scales or sizes do not fit the axes.
    """
    rank = len(shape)
    axes = [a % rank for a in node.attrs.get("axes", range(rank))]
    before = [shape[a] for a in axes]
    ratio, after = _target(node, before, scales, sizes)
    region = [0.0] * len(axes) + [1.0] * len(axes)
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        region = [float(v) for v in static(node, "roi", roi).reshape(-1)]
        if len(region) != 2 * len(axes):
            raise ModelError(f"Resize node {node.name!r}: roi needs {2 * len(axes)} numbers")
    return [
        Axis(a, before[i], after[i], ratio[i], region[i], region[i + len(axes)])
        for i, a in enumerate(axes)
    ]


@lowering("Resize", since=10, layout="channels_last", static=(1,))
@lowering("Upsample", since=9, layout="channels_last", static=(1,))
def upsample(node, x, scales):
    """By `scales`, coordinates asymmetric: https://onnx.ai/onnx/operators/onnx__Upsample.html"""
    nearest = "floor" if node.op == "Upsample" else "simple"
    attrs = {**node.attrs, "coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest}
    return resize(node.replace(attrs=attrs), x, None, scales)


@lowering("Upsample", since=7, layout="channels_last")
def upsample_7(node, x):
    """With the scales as an attribute."""
    return upsample(node, x, np.asarray(node.attrs["scales"], np.float32))


def _target(node, before, scales, sizes) -> tuple[list[float], list[int]]:
    """(real ratio, size after) of each axis, from scales or from sizes and their policy."""
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    given = [] if scales is None else [float(s) for s in static(node, "scales", scales).reshape(-1)]
    wanted = [] if sizes is None else [int(s) for s in static(node, "sizes", sizes).reshape(-1)]
    if bool(given) == bool(wanted) or len(given or wanted) != len(before):
        raise ModelError(
            f"{node.op} node {node.name!r} needs either scales or sizes for {len(before)} axes"
        )
    if min(given or wanted) <= 0 or min(before) <= 0:
        raise ModelError(
            f"{node.op} node {node.name!r}: from {before} to {given or wanted} is no resizing"
        )
    if given:
        return given, [math.floor(n * s) for n, s in zip(before, given, strict=True)]
    ratio = [w / n for n, w in zip(before, wanted, strict=True)]
    if policy != "stretch":
        common = min(ratio) if policy == "not_larger" else max(ratio)
        return [common] * len(before), [math.floor(common * n + 0.5) for n in before]
    return ratio, wanted


def _resized(node, x, plan: list[Axis]):
    y = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    outside: Any = None
    for entry in plan:
        at = _positions(node, entry)
        crop = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if entry.out == entry.size and entry.scale == 1 and not crop:
            continue
        indices, weights = _taps(node, entry, at)
        y = _interpolated(y, entry.axis, indices, weights)
        if crop:
            shape = [-1 if d == entry.axis else 1 for d in range(x.ndim)]
            out = ((at < 0) | (at > entry.size - 1)).reshape(shape)
            outside = out if outside is None else outside | out
    if outside is not None and outside.any():
        fill = np.asarray(node.attrs.get("extrapolation_value", 0.0), y.dtype)
        y = jnp.where(np.broadcast_to(outside, y.shape), fill, y)
    return y.astype(x.dtype)


def _positions(node, entry: Axis) -> np.ndarray:
    """Where each output lies in the input, by coordinate_transformation_mode."""
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    x, scale, size = np.arange(entry.out, dtype=np.float64), entry.scale, entry.size
    width = scale * size
    if mode == "asymmetric":
        return x / scale
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and width != 1):
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return np.full_like(x, -0.5)
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "align_corners":
        return x * 0 if width == 1 else x * (size - 1) / (width - 1)
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - entry.out / width) + (x + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        span = (entry.end - entry.start) * (size - 1)
        inner = span / 2 + x * 0 if width == 1 else x * span / (width - 1)
        return inner + entry.start * (size - 1)
    raise ModelError(
        f"{node.op} node {node.name!r}: unknown coordinate_transformation_mode {mode!r}"
    )


def _taps(node, entry: Axis, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights, each (outputs, taps), of the inputs around each position.

    The position lies in (base, base + 1]: a pixel hit exactly is the right one of its pair.
    """
    mode = node.attrs.get("mode", "nearest")
    base = np.ceil(at) - 1
    ratio = (at - base)[:, None]
    narrow = min(entry.scale, 1.0) if node.attrs.get("antialias", 0) else 1.0
    if mode == "nearest":
        weights = _nearest(node, ratio, entry.scale)
        start = 0
    elif mode == "linear":
        start = math.floor(-1 / narrow) + 1
        distance = np.abs((np.arange(start, 2 - start) - ratio) * narrow)
        weights = np.clip(1 - distance, 0, 1)
    elif mode == "cubic":
        a = node.attrs.get("cubic_coeff_a", -0.75)
        start = math.floor(-2 / narrow) + 1
        d = np.abs((np.arange(start, 2 - start) - ratio) * narrow)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
    else:
        raise ModelError(f"{node.op} node {node.name!r}: unknown mode {mode!r}")
    indices = base[:, None].astype(np.int64) + np.arange(start, start + weights.shape[1])
    if narrow != 1:
        weights = weights / weights.sum(1, keepdims=True)
    if node.attrs.get("exclude_outside", 0):
        weights = np.where((indices >= 0) & (indices < entry.size), weights, 0)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(indices, 0, entry.size - 1), weights


def _nearest(node, ratio: np.ndarray, scale: float) -> np.ndarray:
    mode = node.attrs.get("nearest_mode", "round_prefer_floor")
    if mode == "simple":
        # opset 10 does not say; onnxruntime takes the pixel before, when shrinking the one after
        mode = "floor" if scale >= 1 else "ceil"
    right = {
        "round_prefer_floor": ratio > 0.5,
        "round_prefer_ceil": ratio >= 0.5,
        "floor": ratio == 1,
        "ceil": ratio > 0,
    }
    if mode not in right:
        raise ModelError(f"{node.op} node {node.name!r}: unknown nearest_mode {mode!r}")
    after = right[mode] | (ratio == 1)
    return np.concatenate([~after, after], 1).astype(np.float64)


def _interpolated(x, axis: int, indices: np.ndarray, weights: np.ndarray):
    if not np.any((weights != 0).sum(1) > 1) and np.all(weights.max(1) == 1):
        chosen = np.take_along_axis(indices, weights.argmax(1)[:, None], 1)[:, 0]
        return jnp.take(x, chosen, axis=axis)
    if weights.shape[1] >= _PRODUCT_FROM:
        matrix = np.zeros((len(weights), x.shape[axis]))
        np.add.at(matrix, (np.arange(len(weights))[:, None], indices), weights)
        product = lax.dot_general(x, jnp.asarray(matrix, x.dtype), (((axis,), (1,)), ((), ())))
        return jnp.moveaxis(product, -1, axis)
    shape = [-1 if d == axis else 1 for d in range(x.ndim)]
    total: Any = None
    for index, weight in zip(indices.T, weights.T, strict=True):
        part = jnp.take(x, index, axis=axis) * weight.astype(x.dtype).reshape(shape)
        total = part if total is None else total + part
    return total
