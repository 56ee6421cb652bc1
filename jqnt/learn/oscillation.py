"""Weights that swing between two codes: how often, and the two cures."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.quantizers import Affine, affine_of
from jqnt.quantizers import grid as limits
from jqnt.types import Leaf

__all__ = ["Oscillation", "dampening", "freeze_weight", "still", "track"]


@struct.dataclass
class Oscillation:
    """Per weight: its code, the direction of its last change, how often it turns, its mean code.

    `frozen` weights hold the code round(mean). All leaves have the weight's shape.
    """

    code: Leaf
    direction: Leaf
    frequency: Leaf
    mean: Leaf
    frozen: Leaf


def still(code: Float[Array, "..."]) -> Oscillation:
    """The state of weights that have not moved."""
    zero = jnp.zeros_like(code)
    return Oscillation(code, zero, zero, code, zero)


def track(
    state: Oscillation,
    code: Float[Array, "..."],
    threshold: Float[Array, ""] | float = jnp.inf,
    momentum: float = 0.01,
) -> Oscillation:
    """The state after a step that led to `code`; weights with frequency > threshold freeze.

    o_t = 1 where the code changed, opposite to its last change, else 0
    f_t = m o_t + (1 - m) f_{t-1};   mean_t = m code_t + (1 - m) mean_{t-1}

    Source: Nagel et al. 2022, section 4.1 to 4.3 and algorithm 1.
    """
    change = jnp.sign(code - state.code)
    turned = (change != 0) & (change == -state.direction)
    frequency = momentum * turned + (1 - momentum) * state.frequency
    free = state.frozen == 0
    mean = jnp.where(free, momentum * code + (1 - momentum) * state.mean, state.mean)
    frozen = jnp.where(frequency > threshold, 1.0, state.frozen)
    return Oscillation(
        code=code,
        direction=jnp.where(change != 0, change, state.direction),
        frequency=frequency,
        mean=mean,
        frozen=frozen.astype(state.frozen.dtype),
    )


def freeze_weight(
    weight: Float[Array, "..."], quantizer: Affine, state: Oscillation
) -> Float[Array, "..."]:
    """The weight, with frozen entries on the value of their code."""
    expand = quantizer.granularity.expand
    scale, zero = (expand(v, weight.shape) for v in (quantizer.scale, quantizer.zero_point))
    return jnp.where(state.frozen > 0, (jnp.round(state.mean) - zero) * scale, weight)


def dampening(strength: Callable[[Any], Any]) -> Callable[..., Float[Array, ""]]:
    """The penalty lambda(step) * sum ||Q(w) - clip(w, s n, s p)||^2 of all weights.

    Its gradient reaches w alone, pulls it to the middle of its bin, and is 0 where w clips.
    `penalty(params, qparams, step)`. Source: Nagel et al. 2022, eq. 6.
    """

    def penalty(params: Mapping[str, Any], qparams: Mapping[str, Any], step: Any) -> Any:
        total = jnp.zeros(())
        for name, quantizer in qparams.items():
            grid = affine_of(quantizer)
            if name not in params or grid is None or jnp.ndim(params[name]) < 2:
                continue
            w, grid = params[name], jax.lax.stop_gradient(grid)
            scale, zero, qmin, qmax = limits(grid, w.shape)
            inside = (w >= (qmin - zero) * scale) & (w <= (qmax - zero) * scale)
            # Beyond the outermost codes clip(w) is Q(w) itself: no error and no gradient.
            error = jnp.where(inside, jax.lax.stop_gradient(grid(w)) - w, 0)
            total = total + jnp.sum(error**2)
        return strength(step) * total

    return penalty
