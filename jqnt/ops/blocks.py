"""Blocks of pixels into channels and back."""

import math
from itertools import product

import jax.numpy as jnp
import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.registry import lowering, static
from jqnt.ops.window import output_sizes, window

__all__ = ["col2im", "depth_to_space", "space_to_depth"]


@lowering("DepthToSpace", since=1)
def depth_to_space(node, x):
    """https://onnx.ai/onnx/operators/onnx__DepthToSpace.html"""
    block = node.attrs["blocksize"]
    n, c, h, w = x.shape
    if block < 1 or c % (block * block):
        raise ModelError(f"DepthToSpace node {node.name!r}: {c} channels in blocks of {block}")
    if node.attrs.get("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // block**2, h * block, w * block)


@lowering("SpaceToDepth", since=1)
def space_to_depth(node, x):
    """https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    block = node.attrs["blocksize"]
    n, c, h, w = x.shape
    if block < 1 or h % block or w % block:
        raise ModelError(f"SpaceToDepth node {node.name!r}: {h} x {w} in blocks of {block}")
    order = (0, 3, 5, 1, 2, 4) if node.attrs.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(order)
    return y.reshape(n, c * block**2, h // block, w // block)


@lowering("Col2Im", since=18, static=(1, 2))
def col2im(node, x, image_shape, block_shape):
    """The sum of the blocks, each where it was taken from.

    https://onnx.ai/onnx/operators/onnx__Col2Im.html
    """
    sizes = tuple(int(d) for d in static(node, "image_shape", image_shape))
    kernel = tuple(int(d) for d in static(node, "block_shape", block_shape))
    view = window(node, sizes, kernel)
    out = output_sizes(node, view, sizes)
    taps = math.prod(kernel)
    if x.ndim != 3 or x.shape[1] % taps or x.shape[2] != math.prod(out):
        raise ModelError(
            f"Col2Im node {node.name!r}: {list(x.shape)} is not {taps} taps of {list(out)} blocks"
        )
    x = x.reshape(x.shape[0], -1, taps, *out)
    padded = tuple(size + sum(pads) for size, pads in zip(sizes, view.pads, strict=True))
    image = jnp.zeros((*x.shape[:2], *padded), x.dtype)
    for i, tap in enumerate(product(*map(range, kernel))):
        at = np.ix_(
            *(
                j * d + np.arange(count) * stride
                for j, d, count, stride in zip(tap, view.dilations, out, view.strides, strict=True)
            )
        )
        image = image.at[(slice(None), slice(None), *at)].add(x[:, :, i])
    crop = (slice(p, p + size) for size, (p, _) in zip(sizes, view.pads, strict=True))
    return image[(slice(None), slice(None), *crop)]
