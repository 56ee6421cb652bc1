"""Differentiable soft quantization: a staircase of tanh pieces gives the gradient."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import divide, instead
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine, grid
from jqnt.ranges.min_max import affine_of_limits, limits_of_affine
from jqnt.types import Leaf

__all__ = ["Dsq", "dsq"]


@struct.dataclass
class Dsq:
    """The grid of [low, high], with the derivative of the soft staircase.

    In interval i, with v = x / scale + zero_point and u = v - i - 1/2 in [-1/2, 1/2],

        soft code = i + (phi(u) + 1) / 2,   phi(u) = tanh(k u) / (1 - a),   k = ln(2 / a - 1)

    where a, the `softness`, is kept in [0.001, 0.5] (the paper's alpha; k is its k * Delta). The
    forward pass is the staircase itself. low, high and softness train.
    Source: Gong et al. 2019, eq. 3 to 9.
    """

    low: Leaf
    high: Leaf
    softness: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=False)
    strict: bool = struct.field(pytree_node=False, default=False)
    symmetric: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return instead(self.affine(x), self.soft(x))

    def soft(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The differentiable staircase: what the gradient is of."""
        scale, zero, qmin, qmax = grid(self.affine, x.shape)
        a = jnp.asarray(self.softness)
        a = instead(jnp.clip(a, 0.001, 0.5), a)
        v = divide(x, scale) + zero
        i = jnp.clip(jnp.floor(v), qmin, qmax - 1)
        phi = jnp.tanh(jnp.log(2 / a - 1) * (v - i - 0.5)) / (1 - a)
        inside = i + (phi + 1) / 2
        code = jnp.where(v < qmin, qmin, jnp.where(v > qmax, qmax, inside))
        return (code - zero) * scale

    @property
    def affine(self) -> Affine:
        """The grid of the present limits."""
        return affine_of_limits(self)


def dsq(affine: Affine, batched: bool = False) -> Dsq:
    """DSQ from a grid, its softness 0.2 as in the paper."""
    low, high, symmetric = limits_of_affine(affine)
    return Dsq(
        low, high, jnp.float32(0.2), affine.bits, affine.signed, affine.strict, symmetric,
        affine.granularity,
    )  # fmt: skip
