"""The hub between learning and deployment: quantizers -> plain encodings, rounding -> params."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError
from jqnt.formats import Granularity, Integer
from jqnt.graph.ir import Graph
from jqnt.quantizers import Affine, Cast, Mixture, SoftRound
from jqnt.types import Params, QParams

__all__ = ["freeze"]


def freeze(graph: Graph, params: Params, qparams: QParams) -> tuple[Params, Encodings]:
    """(params, encodings): what emulation, exporters and the report read, in numpy.

    A mixture becomes its most probable branch, soft rounding the values that it rounds to, so
    that rounding the returned params to nearest, on their encodings, gives exactly the learned
    codes. Other params stay float as they are: their codes follow. Scales are float32, zero
    points integers, negative axes counted from the front.

    Raises DataError, naming the tensor, for a scale that is not positive and finite or for bits
    that differ within a tensor, and UnsupportedError for learned rounding of a tensor that is no
    param.
    """
    params = {name: np.asarray(value) for name, value in params.items()}
    tensors: dict[str, Encoding] = {}
    for name, quantizer in qparams.items():
        graph.check(name)
        quantizer = _decided(quantizer)
        rank = params[name].ndim if name in params else None
        if isinstance(quantizer, SoftRound):
            if name not in params:
                raise UnsupportedError(
                    f"the rounding of {name!r} was learned, but it is computed and so cannot be "
                    f"kept in a param; run transforms.cleanup first"
                )
            tensors[name] = _encoding(name, quantizer.affine, rank)
            params[name] = _rounded(name, quantizer, tensors[name], params[name])
        else:
            tensors[name] = _encoding(name, quantizer, rank)
    return params, Encodings(tensors)


def _decided(quantizer: Any) -> Any:
    while isinstance(quantizer, Mixture):
        quantizer = quantizer.chosen
    return quantizer


def _encoding(name: str, quantizer: Any, rank: int | None) -> Encoding:
    if isinstance(quantizer, Cast):
        return Encoding(quantizer.format)
    if not isinstance(quantizer, Affine):
        raise UnsupportedError(
            f"the quantizer of {name!r}, {type(quantizer).__name__}, has no encoding"
        )
    bits = np.unique(np.rint(np.asarray(quantizer.bits, np.float64)))
    if bits.size != 1:
        raise DataError(f"tensor {name!r} has channels of {bits.tolist()} bits: one width a tensor")
    scale = np.asarray(quantizer.scale, np.float32)
    zero_point = np.broadcast_to(np.rint(np.asarray(quantizer.zero_point, np.float64)), scale.shape)
    granularity = quantizer.granularity
    if granularity.axis is not None and granularity.axis < 0 and rank is not None:
        granularity = Granularity(granularity.axis % rank, granularity.block)
    fmt = Integer(int(bits[0]), quantizer.signed, quantizer.strict)
    if (zero_point < fmt.limits[0]).any() or (zero_point > fmt.limits[1]).any():
        raise DataError(f"tensor {name!r} has a zero point outside {fmt.name}'s {fmt.limits}")
    try:
        return Encoding(fmt, scale, zero_point.astype(np.int64), granularity)
    except DataError as error:
        raise DataError(f"tensor {name!r}: {error}") from None


def _rounded(name: str, quantizer: SoftRound, encoding: Encoding, value: np.ndarray) -> np.ndarray:
    """The learned codes as float values that round to themselves."""
    assert encoding.scale is not None and encoding.zero_point is not None
    hard = np.asarray(quantizer.harden(jnp.asarray(value, jnp.float32)))
    codes = encoding.quantize(hard)
    rounded = encoding.dequantize(codes).astype(value.dtype)
    if not np.array_equal(encoding.quantize(rounded), codes):
        raise DataError(f"{name!r}: its codes do not survive storage as {value.dtype}")
    return rounded
