"""Ways to make a choice continuous: softmax of logits, Gumbel draws, real-valued bit widths."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.plan import Options, Plan, Theta

__all__ = ["Relaxation", "bit_grid", "bit_logits", "hat", "noisy", "with_bits"]

Relaxation = Literal["softmax", "gumbel", "bits"]
"""Probabilities from logits; from logits with fresh Gumbel noise at every step (DNAS, Wu et al.
2018); or from a real weight width and a real activation width per choice (FracBits, Yang & Jin
2021), between whose neighbouring widths the two quantizers interpolate."""

_TINY = 1e-12


def bit_grid(plan: Plan) -> dict[str, np.ndarray]:
    """Per choice, float32 [options, 2]: the bits of its weights and of its activations (0 where
    the choice has none); of several tensors in one role the first counts."""
    found = {}
    for name, choice in plan.choices.items():
        rows = []
        for option in choice.options:
            bits = {"weight": 0, "activation": 0}
            for spec in reversed(option):
                if spec.role in bits:
                    bits[spec.role] = spec.format.bits
            rows.append([bits["weight"], bits["activation"]])
        found[name] = np.array(rows, np.float32)
    return found


def hat(bits: Float[Array, ""], widths: np.ndarray) -> Float[Array, " widths"]:
    """Linear interpolation weights of a real width between ascending `widths`; they sum to one.

    Outside it is the nearest end; at a width it is that width alone, so that whatever is
    interpolated with them is exact there.
    """
    if len(widths) == 1:
        return jnp.ones(1)
    bits = jnp.clip(bits, widths[0], widths[-1])
    gaps = np.diff(widths)
    rising = jnp.concatenate([jnp.ones(1), (bits - widths[:-1]) / gaps])
    falling = jnp.concatenate([(widths[1:] - bits) / gaps, jnp.ones(1)])
    return jnp.maximum(jnp.minimum(rising, falling), 0)


def bit_logits(
    bits: Float[Array, "2"], grid: np.ndarray, legal: np.ndarray
) -> Float[Array, " options"]:
    """log of the options' probabilities at real widths (weight, activation): the product of both
    hats at the option's widths, shared by options of equal widths, over the legal ones."""
    total = jnp.ones(len(grid))
    for role in range(2):
        widths, place = np.unique(grid[:, role], return_inverse=True)
        total = total * hat(bits[role], widths)[place]
    _, alike, counts = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    total = total / counts[alike.reshape(-1)]
    return jnp.where(legal, jnp.log(total + _TINY), -1e9)


def with_bits(theta: Theta, plan: Plan, bits: dict[str, Any], legal: np.ndarray) -> Theta:
    """theta with the logits that `bits`, a pair of widths per choice, stand for.

    `legal` is bool [choices, options].
    """
    grid, found = bit_grid(plan), dict(theta)
    for row, name in enumerate(plan.choices):
        logit = bit_logits(bits[name], grid[name], legal[row, : len(grid[name])])
        found[name] = theta[name].replace(logit=logit)
    return found


def noisy(theta: Theta, key: PRNGKeyArray) -> Theta:
    """theta with Gumbel noise on every choice's logits."""
    found = dict(theta)
    for i, (name, group) in enumerate(theta.items()):
        if isinstance(group, Options):
            noise = jax.random.gumbel(jax.random.fold_in(key, i), jnp.shape(group.logit))
            found[name] = replace(group, logit=group.logit + noise)
    return found
