"""PACT: a learned clipping value, through which alone the range gets a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import grid_limits, instead
from jqnt.errors import ConfigError
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine
from jqnt.types import Leaf

__all__ = ["Pact", "pact"]


@struct.dataclass
class Pact:
    """x -> round(y / s) * s with y = (|x| - |x - alpha| + alpha) / 2 and s = alpha / qmax.

    y is x clipped to [0, alpha]; a signed grid clips to [-alpha, alpha]. The derivative is that
    of y: in alpha 1 where x >= alpha (-1 below -alpha), else 0. The paper adds alpha^2 to the
    weight decay: see `weight_decay`. Source: Choi et al. 2018, eq. 1 to 3.
    """

    alpha: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        alpha = self.granularity.expand(jnp.asarray(self.alpha), x.shape)
        low = -alpha if self.signed else jnp.zeros_like(alpha)
        y = jnp.where(x >= alpha, alpha, jnp.where(x <= low, low, x))
        return instead(jax.lax.stop_gradient(self.affine(x)), y)

    @property
    def affine(self) -> Affine:
        """The grid that ends at alpha; strict if it is signed."""
        _, qmax = grid_limits(self.bits, self.signed, self.signed)
        scale = jnp.asarray(self.alpha) / qmax
        return Affine(
            scale, jnp.zeros_like(scale), self.bits, self.signed, self.signed, self.granularity
        )


def pact(affine: Affine, batched: bool = False) -> Pact:
    """PACT whose first clipping value is the largest of the grid.

    Raises ConfigError for a grid with a zero point other than 0: plan it symmetric.
    """
    if np.asarray(affine.zero_point).any():
        raise ConfigError("PACT has no zero point: plan the tensor symmetric (or unsigned, from 0)")
    _, qmax = grid_limits(affine.bits, affine.signed, affine.strict)
    return Pact(jnp.asarray(affine.scale) * qmax, affine.bits, affine.signed, affine.granularity)
