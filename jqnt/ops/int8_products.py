"""Products of int8 with int32 sums, on every platform: matrix products and convolutions."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jqnt.ops.window import Window, places

__all__ = ["convolve", "matmul"]

_IM2COL_CHANNELS = 32
"""Below this many input channels XLA's int8 convolution is 8 times slower than gathered columns."""

_GPU_GRANULE = 16


def matmul(a: Int[Array, "..."], b: Int[Array, "..."]) -> Int[Array, "..."]:
    """The int32 product of int8 arrays, with the shapes of numpy's matmul."""
    return lax.platform_dependent(a, b, cpu=_product, default=_filled_product)


def _product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.int32)


def _filled_product(a, b):
    """GPUs sum wrongly, or don't compile, where an axis is no multiple of 16."""
    shape = jax.eval_shape(_product, a, b).shape
    a, b = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    return _product(_filled_up(a), _filled_up(b))[..., : a.shape[-2], : b.shape[-1]].reshape(shape)


def _filled_up(x):
    """With zeros behind its last two axes."""
    widths = [(0, 0)] * (x.ndim - 2) + [(0, -n % _GPU_GRANULE) for n in x.shape[-2:]]
    return jnp.pad(x, widths)


def convolve(
    x: Int[Array, "n ..."], w: Int[Array, "..."], view: Window, groups: int
) -> Int[Array, "n ..."]:
    """int32 convolution of a channels-last int8 array, the border already on it, with int8 taps
    (spatial..., in / groups, out): y[n, t, o] = sum_{k, i} x[n, t * stride + k * dilation, i]
    w[k, i, o]."""
    inputs, outputs = w.shape[-2:]
    if math.prod(view.kernel) == 1 and groups == 1:
        return matmul(places(x, view)[0], w.reshape(inputs, outputs))
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
    return matmul(jnp.concatenate(places(x, view), -1), w.reshape(-1, w.shape[-1]))


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
    both = matmul(jnp.concatenate(places(x, wide), -1), taps.reshape(-1, 2 * outputs))
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
    result = matmul(columns.transpose(1, 0, 2), taps)
    return result.transpose(1, 0, 2).reshape(*shape, outputs)
