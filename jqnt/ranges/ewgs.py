"""Element-wise gradient scaling: the gradient through rounding knows where it came from."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import divide
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine, grid
from jqnt.types import Leaf

__all__ = ["Ewgs", "ewgs"]


@struct.dataclass
class Ewgs:
    """`Affine` whose rounding passes g (1 + delta sign(g) (x_n - x_q)) for a gradient g.

    x_n is the value in the interval as a number in [0, 1], x_q its rounding: both are codes over
    qmax - qmin. `delta` does not train. The rule depends on the gradient itself, so that there is
    a reverse mode only. Source: Lee et al. 2021, eq. 5.
    """

    scale: Leaf
    zero_point: Leaf
    bits: Leaf
    delta: Leaf
    signed: bool = struct.field(pytree_node=False, default=True)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        scale, zero, qmin, qmax = grid(self.affine, x.shape)
        # As in `fake_quant` the zero point is added after rounding: exact ties go to even.
        v = divide(x, scale)
        low, high = qmin - zero, qmax - zero
        v = jnp.where(v < low, low, jnp.where(v > high, high, v))
        return scaled_round(v, jnp.asarray(self.delta) / (qmax - qmin)) * scale

    @property
    def affine(self) -> Affine:
        """The same grid."""
        return Affine(
            self.scale, self.zero_point, self.bits, self.signed, self.strict, self.granularity
        )


def ewgs(affine: Affine, batched: bool = False, delta: float = 1e-3) -> Ewgs:
    """EWGS from a grid, with the paper's usual delta."""
    return Ewgs(
        affine.scale, affine.zero_point, affine.bits, jnp.float32(delta), affine.signed,
        affine.strict, affine.granularity,
    )  # fmt: skip


@jax.custom_vjp
def scaled_round(v: Float[Array, "..."], delta: Float[Array, "..."]) -> Float[Array, "..."]:
    """round(v); a gradient g comes back as g (1 + delta sign(g) (v - round(v)))."""
    return jnp.round(v)


def _forward(v, delta):
    return jnp.round(v), (v, delta)


def _backward(saved, g):
    v, delta = saved
    return g * (1 + delta * jnp.sign(g) * (v - jnp.round(v))), jnp.zeros_like(delta)


scaled_round.defvjp(_forward, _backward)
