"""Operators that move whole axes: transpose, join, split, repeat, pad, expand."""

import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, namespace
from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("Transpose")
def transpose(node, x):
    """https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    return namespace(x).transpose(x, node.attrs.get("perm"))


@lowering("Concat")
def concat(node, *arrays):
    """https://onnx.ai/onnx/operators/onnx__Concat.html"""
    axis = axis_of(node, node.attrs.get("axis", 1), arrays[0].ndim)
    rest = {x.shape[:axis] + x.shape[axis + 1 :] for x in arrays}
    if len(rest) > 1 or any(x.ndim != arrays[0].ndim for x in arrays):
        raise ModelError(
            f"Concat node {node.name!r}: shapes {', '.join(str(x.shape) for x in arrays)} differ "
            f"outside axis {axis}"
        )
    return namespace(*arrays).concatenate(arrays, axis=axis)


@lowering("Split", since=1)
def split_1(node, x, sizes=None):
    """https://onnx.ai/onnx/operators/onnx__Split.html (sizes are an attribute)"""
    given = node.attrs.get("split") if sizes is None else static(node, "sizes", sizes).tolist()
    return _parts(node, x, given)


@lowering("Split", since=13, static=(1,))
def split(node, x, sizes=None):
    """https://onnx.ai/onnx/operators/onnx__Split.html"""
    return _parts(node, x, None if sizes is None else static(node, "sizes", sizes).tolist())


def _parts(node, x, sizes):
    axis = axis_of(node, node.attrs.get("axis", 0), x.ndim)
    total, count = x.shape[axis], len(node.outputs)
    if sizes is None:
        # equal parts, the last one shorter where they do not fit
        step = -(-total // count)
        sizes = [min(step, max(total - i * step, 0)) for i in range(count)]
    if sum(sizes) != total or len(sizes) != count:
        raise ModelError(
            f"Split node {node.name!r}: sizes {list(sizes)} do not make up axis {axis} of length "
            f"{total} in {count} outputs"
        )
    ends = np.cumsum(sizes)
    whole = (slice(None),) * axis
    return tuple(x[(*whole, slice(e - n, e))] for n, e in zip(sizes, ends.tolist(), strict=True))


@lowering("Tile", since=1, static=(1, 2))
def tile_1(node, x, tiles, axis):
    """https://onnx.ai/onnx/operators/onnx__Tile.html (one axis)"""
    repeats = [1] * x.ndim
    repeats[int(static(node, "the axis", axis))] = int(static(node, "tiles", tiles))
    return namespace(x).tile(x, repeats)


@lowering("Tile", since=6, static=(1,))
def tile(node, x, repeats):
    """https://onnx.ai/onnx/operators/onnx__Tile.html"""
    counts = static(node, "repeats", repeats).tolist()
    if len(counts) != x.ndim:
        raise ModelError(f"Tile node {node.name!r}: repeats {counts} for an input of rank {x.ndim}")
    return namespace(x).tile(x, counts)


@lowering("Expand", static=(1,))
def expand(node, x, shape):
    """https://onnx.ai/onnx/operators/onnx__Expand.html"""
    wanted = tuple(static(node, "the shape", shape).tolist())
    try:
        sizes = np.broadcast_shapes(x.shape, wanted)
    except ValueError:
        raise ModelError(
            f"Expand node {node.name!r}: shapes {x.shape} and {wanted} do not broadcast"
        ) from None
    return namespace(x).broadcast_to(x, sizes)


@lowering("Pad", since=1)
def pad_1(node, x):
    """https://onnx.ai/onnx/operators/onnx__Pad.html (pads and value are attributes)"""
    pads = node.attrs.get("pads", node.attrs.get("paddings"))
    return _padded(node, x, pads, node.attrs.get("value", 0.0))


@lowering("Pad", since=11, static=(1, 3))
def pad(node, x, pads, value=None, axes=None):
    """https://onnx.ai/onnx/operators/onnx__Pad.html"""
    given = static(node, "pads", pads).ravel().tolist()
    if axes is not None:
        chosen = [axis_of(node, a, x.ndim) for a in static(node, "axes", axes).ravel().tolist()]
        begins, ends = [0] * x.ndim, [0] * x.ndim
        for i, axis in enumerate(chosen):
            begins[axis], ends[axis] = given[i], given[i + len(chosen)]
        given = begins + ends
    return _padded(node, x, given, 0 if value is None else value)


def _padded(node, x, pads, value):
    xp = namespace(x, value if hasattr(value, "dtype") else None)
    if len(pads) != 2 * x.ndim:
        raise ModelError(
            f"Pad node {node.name!r}: {len(pads)} pads for an input of rank {x.ndim}, "
            f"expected {2 * x.ndim}"
        )
    widths = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    if any(size + low + high < 0 for size, (low, high) in zip(x.shape, widths, strict=True)):
        raise ModelError(f"Pad node {node.name!r}: pads {pads} crop more than the shape {x.shape}")
    mode = node.attrs.get("mode", "constant")
    if mode == "constant":
        value = xp.reshape(xp.asarray(value, dtype=x.dtype), ())
        if xp is not np:
            return lax.pad(x, value, [(low, high, 0) for low, high in widths])
        x, widths = _cropped(x, widths)
        return np.pad(x, widths, constant_values=value)
    x, widths = _cropped(x, widths)
    return xp.pad(x, widths, mode={"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode])


@lowering("CenterCropPad", since=18, static=(1,))
def center_crop_pad(node, x, shape):
    """https://onnx.ai/onnx/operators/onnx__CenterCropPad.html"""
    wanted = static(node, "the shape", shape).tolist()
    axes = node.attrs.get("axes", range(x.ndim))
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for axis, size in zip(axes, wanted, strict=True):
        axis = axis_of(node, axis, x.ndim)
        more = size - x.shape[axis]
        # the odd element is cut, or added, at the end
        begins[axis] = more // 2 if more > 0 else -(-more // 2)
        ends[axis] = more - begins[axis]
    return _padded(node.replace(attrs={}), x, begins + ends, 0)


def _cropped(x, widths):
    """Negative widths cut first, so that the rest only adds."""
    cuts = tuple(
        slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, widths, strict=True)
    )
    return x[cuts], [(max(a, 0), max(b, 0)) for a, b in widths]
