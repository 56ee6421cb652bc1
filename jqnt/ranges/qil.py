"""Quantization interval learning: what is pruned, what is clipped, and the curve in between."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import grid_limits, round_ste
from jqnt.errors import ConfigError
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine
from jqnt.types import Leaf

__all__ = ["Qil", "qil"]


@struct.dataclass
class Qil:
    """x -> gain * round(t q) / q, q = 2^(bits-1) - 1, with the transformer t in [-1, 1]:

        t = 0                                if |x| < center - distance
        t = sign(x)                          if |x| > center + distance
        t = (a |x| + b)^gamma sign(x)        else,  a = 1/(2 distance), b = 1/2 - a center

    center, distance and gamma train, straight-through on the rounding. `gain` is the value of
    the last code; the paper leaves it to batch normalization. The codes are those of t, not of x:
    `freeze` writes them into the params. Source: Jung et al. 2019, eq. 2 to 6.
    """

    center: Leaf
    distance: Leaf
    gamma: Leaf
    gain: Leaf
    bits: Leaf
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        _, q = grid_limits(self.bits, signed=True, strict=True)
        gain = self.granularity.expand(jnp.asarray(self.gain), x.shape)
        return gain * round_ste(self.transformed(x) * q) / q

    def transformed(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """t, in [-1, 1]."""

        def expand(leaf):
            return self.granularity.expand(jnp.asarray(leaf, jnp.float32), x.shape)

        center, distance, gamma = map(expand, (self.center, self.distance, self.gamma))
        size = jnp.abs(x)
        a = 0.5 / distance
        pruned, clipped = size < center - distance, size > center + distance
        between = ~(pruned | clipped)
        # Values outside get a harmless base, so that no infinite slope meets a zero.
        base = jnp.where(between, a * size + 0.5 - a * center, 0.5)
        curve = jnp.maximum(base, jnp.finfo(jnp.float32).tiny) ** gamma
        t = jnp.where(between, curve, jnp.where(clipped, 1.0, 0.0))
        return t * jnp.sign(x)

    def harden(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The value on the grid."""
        return self(x)

    @property
    def affine(self) -> Affine:
        """The strict signed grid that ends at gain."""
        _, q = grid_limits(self.bits, signed=True, strict=True)
        scale = jnp.asarray(self.gain) / q
        return Affine(scale, jnp.zeros_like(scale), self.bits, True, True, self.granularity)


def qil(affine: Affine, batched: bool = False) -> Qil:
    """QIL of a signed grid: no pruning, clipping at its last code, gamma 1: that grid, strict.

    Raises ConfigError for an unsigned grid: QIL's interval is learned for weights here, whose
    codes can be kept.
    """
    if not affine.signed or batched:
        raise ConfigError("QIL learns the interval of weights on a signed grid; take another here")
    _, q = grid_limits(affine.bits, signed=True, strict=True)
    top = jnp.asarray(affine.scale) * q
    return Qil(top / 2, top / 2, jnp.ones_like(top), top, affine.bits, affine.granularity)
