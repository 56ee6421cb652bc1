"""Learned step sizes: LSQ, and LSQ+ with a learned offset."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import divide, grid_limits, instead, round_ste
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine
from jqnt.types import Leaf

__all__ = ["Lsq", "LsqPlus", "lsq", "lsq_plus"]


@struct.dataclass
class Lsq:
    """`Affine` whose scale has its gradient multiplied by g = 1 / sqrt(N * qmax).

    N is the number of values that share a scale: of a weight all of them, of an activation those
    of one sample (`batched`), so that g does not depend on the batch. The gradient itself is
    `fake_quant`'s. Source: Esser et al. 2020, eq. 3 to 5 and section 2.2.
    """

    scale: Leaf
    zero_point: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=True)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)
    batched: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        g = gradient_scale(x.shape, self)
        return replace(self.affine, scale=slowed(jnp.asarray(self.scale), g))(x)

    @property
    def affine(self) -> Affine:
        """The same grid."""
        return Affine(
            self.scale, self.zero_point, self.bits, self.signed, self.strict, self.granularity
        )


@struct.dataclass
class LsqPlus:
    """x -> clip(round((x - offset) / scale), n, p) * scale + offset, both learned.

    The offset is kept on the grid, -offset / scale rounded being the zero point, so that the
    result is an integer grid with an exact zero; the derivatives are the paper's, those of `Lsq`
    in the scale (n and p where it clips) and 1 where it clips, else 0, in the offset, each times
    g. Source: Bhalgat et al. 2020, eq. 2 and 5 to 7.
    """

    scale: Leaf
    offset: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=False)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)
    batched: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        g = gradient_scale(x.shape, self)
        scale, offset = (slowed(jnp.asarray(v), g) for v in (self.scale, self.offset))
        return replace(self, scale=scale, offset=offset).affine(x)

    @property
    def affine(self) -> Affine:
        """The grid of zero point round(-offset / scale), within the codes."""
        qmin, qmax = grid_limits(self.bits, self.signed, self.strict)
        zero = round_ste(divide(-jnp.asarray(self.offset), jnp.asarray(self.scale)))
        zero = instead(jnp.clip(zero, qmin, qmax), zero)
        return Affine(self.scale, zero, self.bits, self.signed, self.strict, self.granularity)


def lsq(affine: Affine, batched: bool = False) -> Lsq:
    """LSQ from a grid."""
    return Lsq(
        affine.scale, affine.zero_point, affine.bits, affine.signed, affine.strict,
        affine.granularity, batched,
    )  # fmt: skip


def lsq_plus(affine: Affine, batched: bool = False) -> LsqPlus:
    """LSQ+ from a grid."""
    offset = -jnp.asarray(affine.zero_point, jnp.float32) * affine.scale
    return LsqPlus(
        affine.scale, offset, affine.bits, affine.signed, affine.strict, affine.granularity, batched
    )


def gradient_scale(shape: tuple[int, ...], quantizer: Lsq | LsqPlus) -> Float[Array, "..."]:
    """g = 1 / sqrt(N * qmax), N the values (of a sample) that share a scale."""
    scales = max(1, math.prod(jnp.shape(quantizer.scale)))
    count = math.prod(shape[1:] if quantizer.batched else shape) / scales
    _, qmax = grid_limits(quantizer.bits, quantizer.signed, quantizer.strict)
    return 1 / jnp.sqrt(max(count, 1) * jnp.maximum(qmax, 1))


@jax.custom_jvp
def slowed(x: Float[Array, "..."], g: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, with its derivative multiplied by the constant g."""
    return x


@slowed.defjvp
def _slowed_jvp(primals, tangents):
    return primals[0], tangents[0] * primals[1]
