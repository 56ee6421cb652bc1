"""Back from a frozen result to a simulation: encodings -> quantizers."""

import jax.numpy as jnp

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import Minifloat
from jqnt.quantizers import Affine, Cast
from jqnt.types import Quantizer

__all__ = ["thaw"]


def thaw(encodings: Encodings) -> dict[str, Quantizer]:
    """A quantizer per encoded tensor: with `lower`, the float simulation of a frozen model.

    The opposite of `freeze`: freeze(graph, params, thaw(encodings)) gives the encodings back.
    """
    return {name: _quantizer(encoding) for name, encoding in encodings.items()}


def _quantizer(encoding: Encoding) -> Quantizer:
    fmt = encoding.format
    if isinstance(fmt, Minifloat):
        return Cast(fmt)
    assert encoding.scale is not None and encoding.zero_point is not None
    return Affine(
        jnp.asarray(encoding.scale),
        jnp.asarray(encoding.zero_point, jnp.float32),
        jnp.float32(fmt.bits),
        fmt.signed,
        fmt.strict,
        encoding.granularity,
    )
