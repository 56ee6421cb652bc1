"""Trained quantization thresholds: power-of-two scales learned in the log domain."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import divide, grid_limits, round_ste
from jqnt.errors import ConfigError
from jqnt.formats import PER_TENSOR, Granularity
from jqnt.quantizers import Affine, grid
from jqnt.types import Leaf

__all__ = ["Tqt", "tqt"]


@struct.dataclass
class Tqt:
    """x -> clip(round(x / s), n, p) * s with s = 2^ceil(log2 t) / 2^(bits - 1), / 2^bits unsigned.

    `log2_threshold` is log2 t. Straight-through on ceil and round:

        dq/d log2 t = s ln 2 * (round(x/s) - x/s where n <= round(x/s) <= p, else n or p)
        dq/dx       = 1 where n <= round(x/s) <= p, else 0

    No zero point. Source: Jain et al. 2020, eq. 4 to 8.
    """

    log2_threshold: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=True)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        scale, _, low, high = grid(self.affine, x.shape)
        code = round_ste(divide(x, scale))
        code = jnp.where(code < low, low, jnp.where(code > high, high, code))
        return code * scale

    @property
    def affine(self) -> Affine:
        """The grid of the power-of-two scale."""
        whole = power_of_two(jnp.asarray(self.log2_threshold, jnp.float32))
        levels = jnp.asarray(self.bits, jnp.float32) - (1 if self.signed else 0)
        scale = whole / jax.lax.stop_gradient(power_of_two(levels))
        return Affine(
            scale, jnp.zeros_like(scale), self.bits, self.signed, self.strict, self.granularity
        )


def tqt(affine: Affine, batched: bool = False) -> Tqt:
    """TQT whose first threshold is the largest value of the grid.

    Raises ConfigError for a grid with a zero point other than 0: plan it symmetric.
    """
    if np.asarray(affine.zero_point).any():
        raise ConfigError("TQT has no zero point: plan the tensor symmetric (or unsigned, from 0)")
    levels = grid_limits(affine.bits, affine.signed, affine.strict)[1] + 1
    log2 = jnp.log2(jnp.asarray(affine.scale)) + jnp.round(jnp.log2(levels))
    return Tqt(log2, affine.bits, affine.signed, affine.strict, affine.granularity)


@jax.custom_jvp
def power_of_two(exponent: Float[Array, "..."]) -> Float[Array, "..."]:
    """2^ceil(exponent), exactly; the derivative is ln 2 times that (straight-through on ceil)."""
    return jnp.ldexp(jnp.float32(1), jnp.ceil(exponent).astype(jnp.int32))


@power_of_two.defjvp
def _power_of_two_jvp(primals, tangents):
    value = power_of_two(*primals)
    return value, value * jnp.float32(np.log(2)) * tangents[0]
