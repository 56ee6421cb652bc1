"""Operators whose output shape depends on the data: they run on concrete values, in numpy."""

import numpy as np

from jqnt.ops.namespace import axis_of
from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("NonZero", eager=True)
def non_zero(node, x):
    """https://onnx.ai/onnx/operators/onnx__NonZero.html"""
    x = static(node, "the input", x)
    return np.stack(np.nonzero(x.reshape(1) if x.ndim == 0 else x)).astype(np.int64)


@lowering("Compress", eager=True)
def compress(node, x, condition):
    """https://onnx.ai/onnx/operators/onnx__Compress.html"""
    chosen = static(node, "the condition", condition)
    return np.compress(chosen, static(node, "the input", x), axis=node.attrs.get("axis"))


@lowering("Unique", eager=True)
def unique(node, x):
    """https://onnx.ai/onnx/operators/onnx__Unique.html"""
    x = static(node, "the input", x)
    axis = node.attrs.get("axis")
    axis = None if axis is None else axis_of(node, axis, x.ndim)
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not node.attrs.get("sorted", 1):
        order = np.argsort(first, kind="stable")
        values = np.take(values, order, axis=0 if axis is None else axis)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order, kind="stable")[inverse]
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


@lowering("NonMaxSuppression", eager=True)
def non_max_suppression(node, boxes, scores, largest=None, overlap=None, threshold=None):
    """https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html

    boxes (batch, n, 4), scores (batch, class, n) -> (selected, 3) of (batch, class, box).
    """

    def number(what, value, default):
        return default if value is None else static(node, what, value).reshape(-1)[0]

    boxes, scores = static(node, "boxes", boxes), static(node, "scores", scores)
    limit = int(number("the largest number of boxes", largest, 0))
    iou = float(number("the overlap threshold", overlap, 0.0))
    lowest = number("the score threshold", threshold, -np.inf)
    corners = _corners(boxes, bool(node.attrs.get("center_point_box", 0)))
    picked = [
        (b, c, i)
        for b in range(scores.shape[0])
        for c in range(scores.shape[1])
        for i in _suppressed(corners[b], scores[b, c], limit, iou, lowest)
    ]
    return np.asarray(picked, np.int64).reshape(-1, 3)


def _corners(boxes, centred):
    """(..., 4) as low and high corners, whichever diagonal was given."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _suppressed(corners, scores, limit, iou, lowest):
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > lowest]
    kept: list[int] = []
    while order and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(best)
        order = [i for i in order if _overlap(corners[best], corners[i]) <= iou]
    return kept


def _overlap(a, b):
    """Intersection over union of two boxes (low corner, high corner)."""
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return shared / union if union > 0 else 0.0
