"""Back from a frozen result to a simulation: encodings -> quantizers."""

from typing import cast

import jax.numpy as jnp

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import Microscaling, Minifloat
from jqnt.quantizers import Affine, Cast, Microscaled
from jqnt.types import Quantizer

__all__ = ["quantizer_of", "thaw"]


def thaw(encodings: Encodings) -> dict[str, Quantizer]:
    """A quantizer per encoded tensor: with `lower`, the float simulation of a frozen model.

    The opposite of `freeze`: freeze(graph, params, thaw(encodings)) gives the encodings back.
    """
    return {name: quantizer_of(encoding) for name, encoding in encodings.items()}


def quantizer_of(encoding: Encoding) -> Quantizer:
    """What puts a float tensor on the grid of `encoding`."""
    fmt = encoding.format
    scale = None if encoding.scale is None else jnp.asarray(encoding.scale)
    if isinstance(fmt, Minifloat):
        return Cast(fmt, scale, encoding.granularity)
    if isinstance(fmt, Microscaling):
        axis = cast(int, encoding.granularity.axis)
        return Microscaled(jnp.float32(1) if scale is None else scale, fmt, axis)
    assert encoding.scale is not None and encoding.zero_point is not None
    return Affine(
        jnp.asarray(encoding.scale),
        jnp.asarray(encoding.zero_point, jnp.float32),
        jnp.float32(fmt.bits),
        fmt.signed,
        fmt.strict,
        encoding.granularity,
    )
