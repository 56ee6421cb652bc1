"""A moving average of what trains, kept in the optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jqnt.errors import ConfigError
from jqnt.learn.fit import Fit
from jqnt.learn.trainable import merge
from jqnt.types import Leaf

__all__ = ["Averaged", "averaged", "with_average"]


@struct.dataclass
class Averaged:
    """The inner optimizer's state, the average so far, and how many steps it has seen."""

    inner: Leaf
    mean: Leaf
    count: Leaf


def with_average(
    optimizer: optax.GradientTransformation, decay: float = 0.999
) -> optax.GradientTransformation:
    """`optimizer`, which also keeps mean_t = d mean_{t-1} + (1 - d) p_t of what it moves.

    d = min(decay, (1 + t) / (10 + t)), so that the start is soon forgotten. Read by `averaged`.
    Source: Polyak & Juditsky 1992; the warm-up is TensorFlow's. Raises ConfigError for a decay
    outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"a moving average decays by a factor in [0, 1), not {decay}")

    def init(params: Any) -> Any:
        return Averaged(optimizer.init(params), params, jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = optimizer.update(updates, state.inner, params)
        after = optax.apply_updates(params, updates)
        t = state.count.astype(jnp.float32)
        d = jnp.minimum(decay, (1 + t) / (10 + t))
        mean = jax.tree.map(lambda m, p: d * m + (1 - d) * p, state.mean, after)
        return updates, Averaged(inner, mean, state.count + 1)

    return optax.GradientTransformation(init, update)


def averaged(now: Fit) -> Any:
    """theta with the averages in place of the last values; what does not train is as it is.

    Raises ConfigError if the optimizer keeps no average.
    """
    if not isinstance(now.state, Averaged):
        raise ConfigError("this optimizer keeps no average: wrap it in with_average")
    return merge(now.state.mean, now.held)
