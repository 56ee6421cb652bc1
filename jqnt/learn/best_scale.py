"""The scale under which the best rounding errs least: range and rounding chosen together."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.learn.gram import Moments
from jqnt.learn.layer import Layer, tensor
from jqnt.learn.rounding import Rounded, choices, learn_rounding
from jqnt.learn.rows import best_choices
from jqnt.quantizers import Affine

__all__ = ["FACTORS", "best_scale", "learn_scale_and_rounding"]

FACTORS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
"""What the scales that are there already are multiplied with."""


def learn_scale_and_rounding(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    steps: int = 500,
    factors: Sequence[float] = FACTORS,
    key: PRNGKeyArray,
) -> Rounded:
    """`learn_rounding` under `best_scale`; no layer errs more than with the scales as they are,
    but for what the annealing finds beyond the descent."""
    chosen = best_scale(layer, moments, w, quantizer, factors=factors, key=key)
    return learn_rounding(layer, moments, w, chosen, steps=steps, key=key)


def best_scale(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    factors: Sequence[float] = FACTORS,
    key: PRNGKeyArray,
) -> Affine:
    """The quantizer with the scale * f, f of `factors`, that leaves the least output error
    ||x W - x~ W~||^2 *after* rounding is chosen for it.

    A range that is best for rounding to nearest is too wide for learned rounding, or too narrow:
    for each factor the codes come from coordinate descent (`best_choices` without annealing).
    Each scale gets its own factor; the blocks of one output channel share one.
    """
    rows, steps = [], []
    for factor in factors:
        low, high, fraction = jax.device_get(_choices(layer.form, w, quantizer, factor))
        rows.append((low, high, fraction))
        steps.append((high - low).max(-1))
    low, high, fraction = (np.concatenate(parts, 1) for parts in zip(*rows, strict=True))
    cross = np.concatenate([np.asarray(moments.cross)] * len(factors), 1)
    _, error = best_choices(
        np.asarray(moments.gram), cross, low, high, fraction,
        steps=0, rate=0.1, strength=0.3, key=key,
    )  # fmt: skip
    # Back from units of each row's own step, which differ between factors.
    error = np.stack(np.split(error, len(factors), 1)) * np.stack(steps) ** 2
    return _scaled(quantizer, _chosen(layer.form, quantizer, error, jnp.asarray(factors)))


@partial(jax.jit, static_argnames=("layer",))
def _choices(layer: Layer, w: Any, quantizer: Affine, factor: Any) -> tuple[Any, Any, Any]:
    return choices(layer, w, w, _scaled(quantizer, factor))


@partial(jax.jit, static_argnames=("layer",))
def _chosen(layer: Layer, quantizer: Affine, error: Any, factors: Any) -> Any:
    """The best factor for each scale: the errors of its rows summed."""
    groups, out = error.shape[1:]
    inner = int(np.prod(layer.shape)) // (groups * out)

    def summed(each: Any) -> Any:
        spread = tensor(layer, jnp.broadcast_to(each[..., None], (groups, out, inner)))
        return quantizer.granularity.groups(spread).sum(-1)

    best = jnp.argmin(jax.lax.map(summed, error), axis=0)
    return factors[best].reshape(jnp.shape(quantizer.scale))


def _scaled(quantizer: Affine, factor: Any) -> Affine:
    return replace(quantizer, scale=jnp.asarray(quantizer.scale) * factor)
