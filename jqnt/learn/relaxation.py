"""Ways to make a choice continuous: softmax of logits, Gumbel draws, real-valued bit widths."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.formats import Integer
from jqnt.learn.learned_bits import bits_of_steps, nearest, stepped, steps_of_bits
from jqnt.plan import Options, Plan, Theta, bind
from jqnt.types import QParams

__all__ = [
    "Relaxation", "bit_grid", "bit_logits", "first_bits", "hat", "noisy", "relaxed", "widths_of",
    "with_bits",
]  # fmt: skip

Relaxation = Literal["softmax", "gumbel", "bits", "hgq", "dq"]
"""Probabilities from logits; from logits with fresh Gumbel noise at every step (DNAS, Wu et al.
2018); or a real weight width and a real activation width per choice, at which costs are
interpolated between formats: with the two neighbouring quantizers mixed (FracBits, Yang & Jin
2021), with the nearest one and a surrogate slope (HGQ, Sun et al. 2024), or learned as a step and
a range (DQ, Uhlich et al. 2020). The last two run one quantizer a tensor, not the whole menu."""

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


def relaxed(
    relaxation: Relaxation,
    theta: Theta,
    plan: Plan,
    bits: dict[str, Any],
    legal: np.ndarray,
    *,
    temperature: Any,
    key: PRNGKeyArray,
) -> tuple[Theta, QParams, Any]:
    """(theta whose logits price the choices, the quantizers to run, the logits' temperature)."""
    if relaxation == "softmax":
        return theta, bind(theta, plan, temperature), temperature
    if relaxation == "gumbel":
        return theta, bind(noisy(theta, key), plan, temperature), temperature
    priced = with_bits(theta, plan, widths_of(relaxation, plan, bits), legal)
    qparams = bind(priced, plan)
    if relaxation == "hgq":
        qparams |= nearest(theta, plan, bits)
    if relaxation == "dq":
        qparams |= stepped(theta, plan, bits)
    return priced, qparams, 1.0


def first_bits(relaxation: Relaxation, plan: Plan) -> dict[str, np.ndarray]:
    """What a relaxation of bits starts from, the mean width of each menu; {} for the others."""
    if relaxation in ("softmax", "gumbel"):
        return {}
    grid = bit_grid(plan)
    if relaxation == "dq":
        widest = _widest_integers(plan)
        return {
            name: steps_of_bits(np.minimum(rows.mean(0), widest[name]), widest[name])
            for name, rows in grid.items()
        }
    return {name: rows.mean(0) for name, rows in grid.items()}


def widths_of(relaxation: Relaxation, plan: Plan, bits: dict[str, Any]) -> dict[str, Any]:
    """Per choice the real widths [2] (weight, activation) that the state `bits` stands for."""
    if relaxation != "dq":
        return bits
    widest = _widest_integers(plan)
    return {name: bits_of_steps(jnp.asarray(steps), widest[name]) for name, steps in bits.items()}


def _widest_integers(plan: Plan) -> dict[str, np.ndarray]:
    """Per choice and role the most bits of an integer format, float32 [2]; 0 where none is."""
    found = {}
    for name, choice in plan.choices.items():
        most = {"weight": 0, "activation": 0}
        for spec in (spec for option in choice.options for spec in option):
            if spec.role in most and isinstance(spec.format, Integer):
                most[spec.role] = max(most[spec.role], spec.format.bits)
        found[name] = np.array([most["weight"], most["activation"]], np.float32)
    return found


def noisy(theta: Theta, key: PRNGKeyArray) -> Theta:
    """theta with Gumbel noise on every choice's logits."""
    found = dict(theta)
    for i, (name, group) in enumerate(theta.items()):
        if isinstance(group, Options):
            noise = jax.random.gumbel(jax.random.fold_in(key, i), jnp.shape(group.logit))
            found[name] = replace(group, logit=group.logit + noise)
    return found
