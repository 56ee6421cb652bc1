"""Integer products: convolutions and matrix products of codes into exact accumulators."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jqnt.errors import UnsupportedError
from jqnt.integer.exact import Wide
from jqnt.ops import int8_products
from jqnt.ops.window import Window

__all__ = ["accumulate", "convolve", "dot", "int8_pieces", "is_wide", "offset"]


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
    return reduce(add, (int8_products.convolve(x, piece, view, groups) for piece in pieces))


def dot(x: Int[Array, "... k"], pieces: Sequence[Int[Array, "k m"]]) -> Int[Array, "... m"]:
    """int32 product of int8 rows with the sum of int8 matrices."""
    return reduce(add, (int8_products.matmul(x, piece) for piece in pieces))


def _padded(x, view, value):
    if not any(any(pair) for pair in view.pads):
        return x
    widths = [(0, 0, 0), *((low, high, 0) for low, high in view.pads), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value).astype(x.dtype).reshape(()), widths)
