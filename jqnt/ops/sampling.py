"""Sampling at computed places: GridSample, AffineGrid, RoiAlign, MaxRoiPool, DeformConv."""

import math
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jqnt.errors import ModelError
from jqnt.ops.registry import lowering, static
from jqnt.ops.window import output_sizes, window

__all__ = ["affine_grid", "deform_conv", "grid_sample", "max_roi_pool", "roi_align"]


@lowering("GridSample", since=16)
def grid_sample(node, x, grid):
    """x (N, C, *s) at the places that grid (N, *t, rank), last axis first, names in [-1, 1].

    https://onnx.ai/onnx/operators/onnx__GridSample.html
    """
    sizes = x.shape[2:]
    if grid.ndim != x.ndim or grid.shape[-1] != len(sizes) or grid.shape[0] != x.shape[0]:
        raise ModelError(
            f"GridSample node {node.name!r}: grid {list(grid.shape)} for data {list(x.shape)}"
        )
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        node.attrs.get("mode", "linear"), node.attrs.get("mode", "linear")
    )
    padding = node.attrs.get("padding_mode", "zeros")
    if mode not in ("linear", "nearest", "cubic") or padding not in (
        "zeros",
        "border",
        "reflection",
    ):
        raise ModelError(f"GridSample node {node.name!r}: mode {mode!r}, padding_mode {padding!r}")
    corners = bool(node.attrs.get("align_corners", 0))
    places, borders = [], []
    for i, size in enumerate(sizes):
        place = grid[..., len(sizes) - 1 - i]
        place = (place + 1) / 2 * (size - 1) if corners else ((place + 1) * size - 1) / 2
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        if mode == "nearest":
            place = jnp.round(place)
        if padding == "border":
            beyond = (place < low) | (place > high)
            place = jnp.where(beyond, jnp.clip(place, 0, size - 1), place)
        elif padding == "reflection":
            place = _reflected(place, low, high)
        places.append(place)
        borders.append((low, high))
    taps = [_taps_of(place, mode) for place in places]
    data = jnp.moveaxis(x, 1, -1)
    rows = jnp.arange(x.shape[0]).reshape(-1, *(1,) * (grid.ndim - 2))
    total: Any = None
    for corner in product(*taps):
        weight: Any = None
        inside: Any = None
        indices = []
        for (index, factor), size, (low, high) in zip(corner, sizes, borders, strict=True):
            if padding == "reflection":
                index = jnp.trunc(_reflected(index, low, high))
            elif padding == "zeros":
                within = (index >= 0) & (index < size)
                inside = within if inside is None else inside & within
            indices.append(jnp.clip(index, 0, size - 1).astype(jnp.int32))
            if factor is not None:
                weight = factor if weight is None else weight * factor
        value = data[(rows, *indices)]
        if inside is not None:
            value = jnp.where(inside[..., None], value, 0)
        value = value if weight is None else value * weight[..., None].astype(x.dtype)
        total = value if total is None else total + value
    return jnp.moveaxis(total, -1, 1)


@lowering("AffineGrid", since=20, static=(1,))
def affine_grid(node, theta, size):
    """The grid of GridSample that theta (N, rank, rank + 1) makes of the regular one.

    https://onnx.ai/onnx/operators/onnx__AffineGrid.html
    """
    sizes = [int(n) for n in static(node, "size", size)[2:]]
    corners = bool(node.attrs.get("align_corners", 0))
    lines = []
    for n in sizes:
        step = 2 / max(n - 1, 1) if corners else 2 / n
        lines.append(-1 + (0 if corners else step / 2) + step * np.arange(n))
    mesh = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*reversed(mesh), np.ones(sizes)], -1)
    return jnp.einsum("...j,nij->n...i", jnp.asarray(points, theta.dtype), theta)


@lowering("RoiAlign", since=10)
def roi_align_10(node, x, rois, batch_indices):
    """Before opset 16 there was no coordinate_transformation_mode: no half-pixel shift."""
    attrs = {**node.attrs, "coordinate_transformation_mode": "output_half_pixel"}
    return roi_align(node.replace(attrs=attrs), x, rois, batch_indices)


@lowering("RoiAlign", since=16)
def roi_align(node, x, rois, batch_indices):
    """The mean or maximum of bilinear samples in each bin of each region.

    Without sampling_ratio the number of samples depends on the region's size; bins then take
    as many as the largest region needs (traced: a region as large as the image), and those
    beyond a region's own are masked out.
    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    height, width = x.shape[2:]
    bins = (node.attrs.get("output_height", 1), node.attrs.get("output_width", 1))
    scale = node.attrs.get("spatial_scale", 1.0)
    half = node.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    ratio = node.attrs.get("sampling_ratio", 0)
    largest = [
        ratio or max(math.ceil(n * 1.0 / b), 1) for n, b in zip((height, width), bins, strict=True)
    ]
    if not ratio and not isinstance(rois, Tracer):
        extent = np.asarray(rois)[:, 2:] - np.asarray(rois)[:, :2]
        if len(extent):
            need = extent.max(0)[::-1] * scale
            largest = [max(math.ceil(e / b), 1) for e, b in zip(need, bins, strict=True)]
    images = x[batch_indices.astype(jnp.int32)]
    shift = 0.5 if half else 0.0
    samples = []
    for d, (size, count, most) in enumerate(zip((height, width), bins, largest, strict=True)):
        start = rois[:, 1 - d] * scale - shift
        extent = rois[:, 3 - d] * scale - shift - start
        extent = extent if half else jnp.maximum(extent, 1)
        step = extent / count
        grid = jnp.full(start.shape, ratio) if ratio else jnp.maximum(jnp.ceil(step), 0)
        offset = (jnp.arange(most)[None] + 0.5) / jnp.maximum(grid, 1)[:, None]
        at = (
            start[:, None, None]
            + (jnp.arange(count)[None, :, None] + offset[:, None, :]) * (step[:, None, None])
        )
        used = jnp.arange(most)[None, None, :] < grid[:, None, None]
        inside = (at >= -1) & (at <= size)
        at = jnp.clip(at, 0, size - 1)
        low = jnp.floor(at)
        samples.append((low.astype(jnp.int32), at - low, used & inside, used, grid))
    return _roi_pooled(node, images, samples)


def _roi_pooled(node, images, samples):
    (y, ly, in_y, use_y, grid_y), (x, lx, in_x, use_x, grid_x) = samples
    rows = jnp.arange(images.shape[0])[:, None, None, None, None]
    data = jnp.moveaxis(images, 1, -1)

    def cross(a, b, combine):
        return combine(a[:, :, :, None, None], b[:, None, None, :, :])

    inside = cross(in_y, in_x, jnp.logical_and)[..., None]
    used = cross(use_y, use_x, jnp.logical_and)[..., None]
    corners = []
    for dy, dx in product((0, 1), (0, 1)):
        weight = cross(ly if dy else 1 - ly, lx if dx else 1 - lx, jnp.multiply)
        at_y = jnp.minimum(y + dy, images.shape[2] - 1)[:, :, :, None, None]
        at_x = jnp.minimum(x + dx, images.shape[3] - 1)[:, None, None, :, :]
        value = data[rows, at_y, at_x] * weight[..., None].astype(images.dtype)
        corners.append(jnp.where(inside, value, 0))
    if node.attrs.get("mode", "avg").lower() == "avg":
        count = jnp.maximum(grid_y * grid_x, 1)[:, None, None, None]
        pooled = jnp.sum(sum(corners), (2, 4)) / count.astype(images.dtype)
    else:
        best = corners[0]
        for corner in corners[1:]:
            best = jnp.maximum(best, corner)
        pooled = jnp.max(jnp.where(used, best, -jnp.inf), (2, 4))
        pooled = jnp.where(jnp.isfinite(pooled), pooled, 0)
    return jnp.moveaxis(pooled, -1, 1)


@lowering("MaxRoiPool", since=1)
def max_roi_pool(node, x, rois):
    """The maximum of each bin of each region, in whole pixels.

    https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html
    """
    scale = node.attrs.get("spatial_scale", 1.0)
    images = x[rois[:, 0].astype(jnp.int32)]
    masks = []
    for d, count in enumerate(node.attrs["pooled_shape"]):
        size = x.shape[2 + d]
        start = jnp.floor(rois[:, 2 - d] * scale + 0.5)
        end = jnp.floor(rois[:, 4 - d] * scale + 0.5)
        step = jnp.maximum(end - start + 1, 1) / count
        k = jnp.arange(count)
        low = jnp.clip(jnp.floor(k * step[:, None]) + start[:, None], 0, size)
        high = jnp.clip(jnp.ceil((k + 1) * step[:, None]) + start[:, None], 0, size)
        pixel = jnp.arange(size)
        masks.append((pixel >= low[..., None]) & (pixel < high[..., None]))
    rows, columns = masks
    low = jnp.asarray(-jnp.inf, x.dtype)
    per_row = jnp.max(
        jnp.where(columns[:, None, None, :, :], images[:, :, :, None, :], low), axis=-1
    )
    pooled = jnp.max(jnp.where(rows[:, None, :, :, None], per_row[:, :, None, :, :], low), axis=3)
    return jnp.where(jnp.isfinite(pooled), pooled, 0)


@lowering("DeformConv", since=19)
def deform_conv(node, x, w, offset, b=None, mask=None):
    """Convolution whose taps are displaced by `offset` and weighted by `mask`.

    https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """
    groups, shared = node.attrs.get("group", 1), node.attrs.get("offset_group", 1)
    sizes, rank = x.shape[2:], x.ndim - 2
    view = window(node, sizes, w.shape[2:])
    out = output_sizes(node, view, sizes)
    taps = math.prod(view.kernel)
    n, channels = x.shape[:2]
    offset = offset.reshape(n, shared, taps, rank, *out)
    base = []
    for i, tap in enumerate(np.meshgrid(*map(np.arange, view.kernel), indexing="ij")):
        start = np.arange(out[i]) * view.strides[i] - view.pads[i][0]
        tap = tap.reshape(-1, *(1,) * rank) * view.dilations[i]
        base.append(tap + start.reshape([-1 if d == i else 1 for d in range(rank)]))
    data = jnp.moveaxis(x.reshape(n, shared, channels // shared, *sizes), 2, -1)
    rows = jnp.arange(n).reshape(-1, 1, 1, *(1,) * rank)
    column = jnp.arange(shared).reshape(1, -1, 1, *(1,) * rank)
    total: Any = None
    pairs = [_taps_of(offset[:, :, :, i] + base[i][None, None], "linear") for i in range(rank)]
    for corner in product(*pairs):
        weight: Any = None
        indices = []
        for (index, factor), size in zip(corner, sizes, strict=True):
            factor = jnp.where((index >= 0) & (index < size), factor, 0)
            weight = factor if weight is None else weight * factor
            indices.append(jnp.clip(index, 0, size - 1).astype(jnp.int32))
        value = data[(rows, column, *indices)] * weight[..., None]
        total = value if total is None else total + value
    if mask is not None:
        total = total * mask.reshape(n, shared, taps, *out)[..., None]
    # (n, shared, taps, *out, channels / shared) -> (n, groups, channels / groups, taps, *out)
    columns = jnp.moveaxis(total, -1, 2).reshape(n, groups, channels // groups, taps, *out)
    kernel = w.reshape(groups, -1, channels // groups, taps)
    y = jnp.einsum("ngit...,goit->ngo...", columns, kernel).reshape(n, -1, *out)
    return y if b is None else y + b.reshape(1, -1, *(1,) * rank)


def _reflected(place, low: float, high: float):
    """Back and forth between the borders, which lie at `low` and `high`."""
    span = high - low
    if span <= 0:
        return jnp.full_like(place, low)
    away = jnp.abs(place - low) % (2 * span)
    return jnp.where(away > span, 2 * span - away, away) + low


def _taps_of(place, mode: str):
    """(index as float, weight) of the neighbours of a place along one axis."""
    if mode == "nearest":
        return [(place, None)]
    base = jnp.floor(place)
    r = place - base
    if mode == "linear":
        return [(base, 1 - r), (base + 1, r)]
    a = -0.75
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (r + 1, 2 - r)]
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (r, 1 - r)]
    return [(base - 1, far[0]), (base, near[0]), (base + 1, near[1]), (base + 2, far[1])]
