"""How a real number becomes an integer: the ways that back ends and papers round."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Rounding", "rounded"]

Rounding = Literal["half_even", "half_away", "floor"]


def rounded(v: Float[Array, "..."], how: Rounding = "half_even", noise: Any = None) -> Any:
    """The integer next to v: ties to even, ties away from zero, or always downwards.

    With `noise`, uniform in [0, 1) and of v's shape, it is floor(v) + (noise < v - floor(v)):
    stochastic rounding, whose expectation is v (Gupta et al. 2015, section 3.1), whatever `how`.
    """
    if noise is not None:
        below = jnp.floor(v)
        return below + (noise < v - below)
    if how == "half_even":
        return jnp.round(v)
    if how == "floor":
        return jnp.floor(v)
    # |v| + 1/2 would round 0.49999997 up before it is cut off.
    whole = jnp.trunc(v)
    return whole + jnp.sign(v) * (jnp.abs(v - whole) >= 0.5)
