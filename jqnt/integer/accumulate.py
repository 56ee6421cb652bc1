"""Integer products: convolutions and matrix products of codes into exact accumulators."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jqnt.errors import UnsupportedError
from jqnt.integer.exact import Wide
from jqnt.ops.window import Window

__all__ = ["accumulate", "convolve", "dot", "int8_pieces", "is_wide", "offset", "places"]

_IM2COL_CHANNELS = 32
"""Below this many input channels XLA's int8 convolution is 8 times slower than gathered columns."""


_GPU_GRANULE = 16


def int8_pieces(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """int8 arrays that sum to `values`: one where they fit, else two, and three for 255 (weights
    less a zero point at the lowest code)."""
    if np.abs(values).max(initial=0) > 255:
        raise UnsupportedError(
            f"weights less their zero point reach {np.abs(values).max()}, more than 255"
        )
    pieces = [np.clip(values, -128, 127)]
    while (rest := values - sum(pieces)).any():
        pieces.append(np.clip(rest, -128, 127))
    return tuple(piece.astype(np.int8) for piece in pieces)


def accumulate(product: Any, x: Int[Array, "..."], wide: bool) -> Any:
    """product(x) for an int8 operand, or for an int16 one in two halves.

    `product` is linear and takes int8. An int16 x is 256 * high + (low + 128) with int8 halves,
    that run as one batch; their sum is int32, or `Wide` where `is_wide` says that it may not
    fit. The caller adds 128 * sum(w): see `offset`.
    """
    if x.dtype == jnp.int8:
        return product(x)
    high, low = (x >> 8).astype(jnp.int8), ((x & 255) - 128).astype(jnp.int8)
    both = product(jnp.concatenate([high, low]))
    high, low = jnp.split(both, 2)
    return Wide(high, low) if wide else (high << 8) + low


def is_wide(reach: int) -> bool:
    """Whether a 16 bit code less its zero point, times `reach` = sum |w|, can leave 31 bits."""
    return reach * 2**16 >= 2**31


def offset(acc: Any, sums: Any, zero_point: Any, halves: bool) -> Any:
    """acc - zero_point * sum(w), and + 128 * sum(w) where the operand came in halves."""
    if isinstance(acc, Wide):
        high, low = zero_point >> 8, zero_point & 255
        return Wide(acc.high - high * sums, acc.low + (128 - low) * sums)
    return acc + ((128 if halves else 0) - zero_point) * sums


def convolve(
    x: Int[Array, "n ..."],
    pieces: Sequence[Int[Array, "..."]],
    view: Window,
    groups: int,
    pad_value: Any,
) -> Int[Array, "n ..."]:
    """int32 convolution of a channels-last int8 array; `pieces` (spatial..., in, out) add up.

    The border holds `pad_value`, so that a zero point's contribution is one number per output.
    """
    x = _padded(x, view, pad_value)
    run = partial(_convolve_valid, x, view=view, groups=groups)
    total = run(pieces[0])
    for piece in pieces[1:]:
        total = total + run(piece)
    return total


def dot(x: Int[Array, "... k"], pieces: Sequence[Int[Array, "k m"]]) -> Int[Array, "... m"]:
    """int32 product of int8 rows with the sum of int8 matrices."""
    total = _dot(x, pieces[0])
    for piece in pieces[1:]:
        total = total + _dot(x, piece)
    return total


def _dot(x, w):
    return _product(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def _product(x, w, dims):
    """int32 products of int8. GPUs sum wrongly, or don't compile, where an axis is no multiple
    of 16: there zeros fill up the two that are not a batch's, of x and of w."""

    def product(x, w):
        return lax.dot_general(x, w, dims, preferred_element_type=jnp.int32)

    def filled(x, w):
        batch = dims[1][0]
        result = product(_filled_up(x, dims[1][0]), _filled_up(w, dims[1][1]))
        free = [n for d, n in enumerate(x.shape) if d not in (*batch, dims[0][0][0])]
        free += [n for d, n in enumerate(w.shape) if d not in (*dims[1][1], dims[0][1][0])]
        sizes = [*(x.shape[d] for d in batch), *free]
        return lax.slice(result, (0,) * len(sizes), sizes)

    return lax.platform_dependent(x, w, cpu=product, default=filled)


def _filled_up(x, batch):
    """With zeros behind its last two axes that are no batch's."""
    last = [d for d in range(x.ndim) if d not in batch][-2:]
    return jnp.pad(x, [(0, -n % _GPU_GRANULE if d in last else 0) for d, n in enumerate(x.shape)])


def _padded(x, view, value):
    if not any(any(pair) for pair in view.pads):
        return x
    widths = [(0, 0, 0), *((low, high, 0) for low, high in view.pads), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value).astype(x.dtype).reshape(()), widths)


def _convolve_valid(x, w, view, groups):
    inputs, outputs = w.shape[-2:]
    if math.prod(view.kernel) == 1 and groups == 1:
        return _dot(places(x, view)[0], w.reshape(inputs, outputs))
    if groups > 1 and inputs == 1:
        return _depthwise(x, w, view, groups)
    if groups > 1:
        return _grouped(x, w, view, groups)
    if inputs < _IM2COL_CHANNELS:
        return _columns(x, w, view)
    spatial = "DHWXYZ"[: x.ndim - 2]

    def library(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            view.strides,
            "VALID",
            rhs_dilation=view.dilations,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            preferred_element_type=jnp.int32,
        )

    # XLA has int8 convolutions for CPUs alone.
    return lax.platform_dependent(x, w, cpu=library, default=lambda x, w: _gathered(x, w, view))


def _gathered(x, w, view):
    return _dot(jnp.concatenate(places(x, view), -1), w.reshape(-1, w.shape[-1]))


def _columns(x, w, view):
    """The product of gathered columns with the taps; two neighbours on the last axis share a
    column where outputs are few, which gathers two thirds as much and fills the product."""
    *_, k, inputs, outputs = w.shape
    stride = view.strides[-1]
    pair = outputs <= 32 and k > 1 and view.dilations[-1] == 1 and (stride == 1 or inputs <= 4)
    if not pair:
        return _gathered(x, w, view)
    count = (x.shape[-2] - k) // stride + 1
    missing = (2 * -(-count // 2) - 1) * stride + k - x.shape[-2]
    x = jnp.pad(x, [(0, max(missing, 0) if d == x.ndim - 2 else 0) for d in range(x.ndim)])
    late = [(stride, 0) if d == w.ndim - 3 else (0, 0) for d in range(w.ndim)]
    early = [pair[::-1] for pair in late]
    taps = jnp.stack([jnp.pad(w, early), jnp.pad(w, late)], -2)
    wide = view._replace(
        kernel=(*view.kernel[:-1], k + stride), strides=(*view.strides[:-1], 2 * stride)
    )
    both = _dot(jnp.concatenate(places(x, wide), -1), taps.reshape(-1, 2 * outputs))
    both = both.reshape(*both.shape[:-2], 2 * both.shape[-2], outputs)
    return both[..., :count, :]


def _depthwise(x, w, view, groups):
    """Shifted multiply-adds: a grouped convolution is 140 times slower on the CPU."""
    taps = w.reshape(-1, groups, w.shape[-1] // groups)
    total = None
    for place, tap in zip(places(x, view), taps, strict=True):
        wide = place.astype(jnp.int32)[..., None] * tap.astype(jnp.int32).reshape(
            (1,) * (x.ndim - 1) + tap.shape
        )
        total = wide if total is None else total + wide
    assert total is not None
    return total.reshape(*total.shape[:-2], -1)


def _grouped(x, w, view, groups):
    """One batched product of gathered columns, the groups as its batch."""
    inputs, outputs = w.shape[-2:]
    taps = w.reshape(-1, inputs, groups, outputs // groups)
    taps = taps.transpose(2, 0, 1, 3).reshape(groups, -1, outputs // groups)
    parts = places(x, view)
    shape = parts[0].shape[:-1]
    columns = jnp.stack([p.reshape(-1, groups, inputs) for p in parts], 2)
    columns = columns.reshape(columns.shape[0], groups, -1)
    result = _product(columns, taps, (((2,), (1,)), ((1,), (0,))))
    return result.transpose(1, 0, 2).reshape(*shape, outputs)


def places(x: Any, view: Window) -> list[Any]:
    """The input as each tap of the window sees it, in the order of the kernel's elements."""
    sizes = x.shape[1:-1]
    spans = [(k - 1) * d + 1 for k, d in zip(view.kernel, view.dilations, strict=True)]
    counts = [(n - s) // t + 1 for n, s, t in zip(sizes, spans, view.strides, strict=True)]
    found = []
    for tap in np.ndindex(*view.kernel):
        picks = [slice(None)]
        for i, d, n, t in zip(tap, view.dilations, counts, view.strides, strict=True):
            picks.append(slice(i * d, i * d + (n - 1) * t + 1, t))
        found.append(x[tuple(picks)])
    return found
