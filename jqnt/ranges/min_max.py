"""Learned limits: the smallest and the largest value train, scale and zero point follow."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import divide, grid_limits, instead, round_ste
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine
from jqnt.types import Leaf

__all__ = ["MinMax", "affine_of_limits", "limits_of_affine", "min_max"]


@struct.dataclass
class MinMax:
    """`Affine` of scale (high - low) / (qmax - qmin) and zero point round(qmin - low / scale).

    A symmetric grid has its zero point in the middle of the codes. The derivatives in low and
    high are those of the scale and of the zero point (`fake_quant`), straight-through on its
    rounding. Source: AIMET's range learning (aimet_torch v2, min and max as parameters);
    Krishnamoorthi 2018, section 2.1, for the grid.
    """

    low: Leaf
    high: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=False)
    strict: bool = struct.field(pytree_node=False, default=False)
    symmetric: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.affine(x)

    @property
    def affine(self) -> Affine:
        """The grid of the present limits."""
        return affine_of_limits(self)


def min_max(affine: Affine, batched: bool = False) -> MinMax:
    """Learned limits from a grid; symmetric if its zero point is the middle of the codes."""
    low, high, symmetric = limits_of_affine(affine)
    return MinMax(
        low, high, affine.bits, affine.signed, affine.strict, symmetric, affine.granularity
    )


def limits_of_affine(affine: Affine) -> tuple[Array, Array, bool]:
    """(low, high, whether the zero point is the middle): the values of the outermost codes."""
    qmin, qmax = grid_limits(affine.bits, affine.signed, affine.strict)
    zero = jnp.asarray(affine.zero_point, jnp.float32)
    middle = jnp.zeros_like(qmin) if affine.signed else jnp.ceil((qmin + qmax) / 2)
    symmetric = bool(np.all(np.asarray(zero == middle)))
    return (qmin - zero) * affine.scale, (qmax - zero) * affine.scale, symmetric


def affine_of_limits(limits) -> Affine:
    """The grid from low <= 0 to high >= 0 of anything with the fields of `MinMax`."""
    qmin, qmax = grid_limits(limits.bits, limits.signed, limits.strict)
    low, high = (jnp.asarray(v, jnp.float32) for v in (limits.low, limits.high))
    low = instead(jnp.minimum(low, 0), low)
    high = instead(jnp.maximum(high, 0), high)
    span = high - low
    tiny = jnp.finfo(jnp.float32).tiny
    scale = divide(instead(jnp.maximum(span, tiny * 1e6), span), qmax - qmin)
    if limits.symmetric:
        middle = jnp.zeros_like(qmin) if limits.signed else jnp.ceil((qmin + qmax) / 2)
        zero = jnp.broadcast_to(middle, scale.shape)
    else:
        zero = round_ste(qmin - divide(low, scale))
        zero = instead(jnp.clip(zero, qmin, qmax), zero)
    return Affine(scale, zero, limits.bits, limits.signed, limits.strict, limits.granularity)
