"""The hub between learning and deployment: quantizers -> plain encodings, rounding -> params."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import Integer
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.quantizers import (
    Affine,
    Cast,
    Microscaled,
    Mixture,
    SoftRound,
    Stochastic,
    affine_of,
)
from jqnt.ranges import Qil
from jqnt.types import Params, QParams

__all__ = ["freeze"]


def freeze(graph: Graph, params: Params, qparams: QParams) -> tuple[Params, Encodings]:
    """(params, encodings): what emulation, exporters and the report read, in numpy.

    A mixture becomes its most probable branch, soft rounding the values that it rounds to, so
    that rounding the returned params to nearest, on their encodings, gives exactly the learned
    codes. So do weights whose grid rounds otherwise than to nearest even, is {-1, +1}, or stands
    half a step off zero: that one is kept as the odd codes of half the scale, one bit wider. Other
    params stay float as they are: their codes follow. Stochastic rounding is for training and
    becomes rounding to nearest. Scales are float32, zero points integers, negative axes counted
    from the front.

    Raises DataError, naming the tensor, for a scale that is not positive and finite or for bits
    that differ within a tensor, and UnsupportedError for learned or other rounding, or a grid
    without a zero, of a tensor that is no param.
    """
    params = {name: np.asarray(value) for name, value in params.items()}
    tensors: dict[str, Encoding] = {}
    for name, quantizer in qparams.items():
        graph.check(name)
        quantizer = _decided(quantizer)
        rank = params[name].ndim if name in params else None
        if isinstance(quantizer, SoftRound | Qil):
            if name not in params:
                raise UnsupportedError(
                    f"the rounding of {name!r} was learned, but it is computed and so cannot be "
                    f"kept in a param; run transforms.cleanup first"
                )
            tensors[name] = _encoding(name, quantizer.affine, rank)
            params[name] = _rounded(name, quantizer, tensors[name], params[name])
        else:
            tensors[name] = _encoding(name, quantizer, rank)
            special = isinstance(quantizer, Affine) and (
                quantizer.shifted or quantizer.rounding != "half_even"
            )
            special |= tensors[name].format == Integer(1, signed=True)
            if special:
                if name not in params:
                    raise UnsupportedError(
                        f"{name!r} is computed, so codes are made of it at run time: to the "
                        f"nearest, ties to even, on a grid with a zero"
                    )
                hard = np.asarray(quantizer(jnp.asarray(params[name], jnp.float32)))
                params[name] = _settled(name, hard, tensors[name], params[name])
    return params, Encodings(tensors)


def _decided(quantizer: Any) -> Any:
    while isinstance(quantizer, Mixture | Stochastic):
        quantizer = quantizer.chosen if isinstance(quantizer, Mixture) else quantizer.quantizer
    return quantizer.on_grid() if isinstance(quantizer, Affine) else quantizer


def _encoding(name: str, quantizer: Any, rank: int | None) -> Encoding:
    try:
        if isinstance(quantizer, Cast):
            return Encoding(
                quantizer.format, quantizer.scale, None, _counted(quantizer.granularity, rank)
            )
        if isinstance(quantizer, Microscaled):
            fmt = quantizer.format
            scale = None if fmt.scale is None else quantizer.scale
            blocks = _counted(Granularity(quantizer.axis, fmt.block), rank)
            return Encoding(fmt, scale, None, blocks)
    except DataError as error:
        raise DataError(f"tensor {name!r}: {error}") from None
    kind, quantizer = type(quantizer).__name__, affine_of(quantizer)
    if quantizer is None:
        raise UnsupportedError(f"the quantizer of {name!r}, {kind}, has no encoding")
    bits = np.unique(np.rint(np.asarray(quantizer.bits, np.float64)))
    if bits.size != 1:
        raise DataError(f"tensor {name!r} has channels of {bits.tolist()} bits: one width a tensor")
    scale = np.asarray(quantizer.scale, np.float32)
    zero_point = np.broadcast_to(np.rint(np.asarray(quantizer.zero_point, np.float64)), scale.shape)
    granularity = _counted(quantizer.granularity, rank)
    fmt = Integer(int(bits[0]), quantizer.signed, quantizer.strict)
    if fmt.strict and not quantizer.strict and not quantizer.shifted:
        raise DataError(f"tensor {name!r} has the codes -1 and 0: a grid of one bit is strict")
    if quantizer.shifted:
        fmt, scale = Integer(fmt.bits + 1, signed=True), scale / 2
    if (zero_point < fmt.limits[0]).any() or (zero_point > fmt.limits[1]).any():
        raise DataError(f"tensor {name!r} has a zero point outside {fmt.name}'s {fmt.limits}")
    try:
        return Encoding(fmt, scale, zero_point.astype(np.int64), granularity)
    except DataError as error:
        raise DataError(f"tensor {name!r}: {error}") from None


def _rounded(
    name: str, quantizer: SoftRound | Qil, encoding: Encoding, value: np.ndarray
) -> np.ndarray:
    """The learned codes as float values that round to themselves."""
    hard = np.asarray(quantizer.harden(jnp.asarray(value, jnp.float32)))
    return _settled(name, hard, encoding, value)


def _settled(name: str, hard: np.ndarray, encoding: Encoding, value: np.ndarray) -> np.ndarray:
    codes = encoding.quantize(hard)
    rounded = encoding.dequantize(codes).astype(value.dtype)
    if not np.array_equal(encoding.quantize(rounded), codes):
        raise DataError(f"{name!r}: its codes do not survive storage as {value.dtype}")
    return rounded


def _counted(granularity: Granularity, rank: int | None) -> Granularity:
    """Negative axes counted from the front, where the rank is known."""
    axis = granularity.axis
    if axis is None or rank is None:
        return granularity
    counted = tuple(a % rank for a in axis) if isinstance(axis, tuple) else axis % rank
    return Granularity(counted, granularity.block)
