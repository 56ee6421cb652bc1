"""Real-valued bit widths with one forward pass: HGQ's surrogate gradient, DQ's step and range."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.affine import round_ste
from jqnt.formats import Integer
from jqnt.plan import Plan, Spec, Theta, branch_specs
from jqnt.quantizers import Affine, Select, SoftRound, grid
from jqnt.types import Leaf, QParams

__all__ = ["Nearest", "Stepped", "bits_of_steps", "nearest", "stepped", "steps_of_bits"]

ROLES = ("weight", "activation")


@struct.dataclass
class Nearest:
    """x -> the branch whose width is nearest to the real number `bits`, with a slope in `bits`.

    d x_q / d bits = ln 2 * (x - x_q): a bit more halves the error (HGQ, Sun et al. 2024, eq. 9,
    where it is d delta / d f = -ln 2 * delta). The derivative in x is the branch's own.
    """

    bits: Leaf
    branches: tuple[Any, ...]
    widths: tuple[float, ...] = struct.field(pytree_node=False)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        index = jnp.argmin(jnp.abs(self.bits - np.array(self.widths, np.float32)))
        y = Select(jax.lax.stop_gradient(index), self.branches)(x)
        slope = jax.lax.stop_gradient(jnp.log(2.0) * (x - y))
        return y + slope * (self.bits - jax.lax.stop_gradient(self.bits))


@struct.dataclass
class Stepped:
    """x -> d * round(clip(x, low, high) / d), with d = 2^step * `base`'s scale and the limits of
    `base` times 2^top: both learned.

    d Q / d d = (Q(x) - x) / d inside the range, 0 outside; d Q / d q_max = sign(x) outside, 0
    inside: decoupled and bounded (DQ, Uhlich et al. 2020, parametrization U3, eq. 7).
    """

    step: Leaf
    top: Leaf
    base: Any

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        scale, zero_point, qmin, qmax = jax.lax.stop_gradient(grid(self.base, x.shape))
        stretch = jnp.exp2(self.top)
        low, high = (qmin - zero_point) * scale * stretch, (qmax - zero_point) * scale * stretch
        d = scale * jnp.exp2(self.step)
        return d * round_ste(jnp.minimum(jnp.maximum(x, low), high) / d)


def nearest(theta: Theta, plan: Plan, bits: dict[str, Any]) -> QParams:
    """A `Nearest` for every tensor of a choice, at the width that `bits` [2] has for its role."""
    found = {}
    for name, choice in plan.choices.items():
        for tensor in choice.tensors:
            specs = branch_specs(choice, tensor)
            widths = tuple(float(spec.format.bits) for spec in specs)
            own = bits[name][ROLES.index(specs[0].role)]
            found[tensor] = Nearest(own, theta[name].branches[tensor], widths)
    return _with_tied(found, plan)


def stepped(theta: Theta, plan: Plan, steps: dict[str, Any]) -> QParams:
    """A `Stepped` for every tensor of a choice that has an integer format, about its widest.

    `steps` maps a choice to float32 [2, 2]: per role, log2 of the step and of the range relative
    to the widest format's.
    """
    found = {}
    for name, choice in plan.choices.items():
        for tensor in choice.tensors:
            specs = branch_specs(choice, tensor)
            base = _widest(specs, theta[name].branches[tensor])
            if base is not None:
                step, top = steps[name][ROLES.index(specs[0].role)]
                found[tensor] = Stepped(step, top, base)
    return _with_tied(found, plan)


def bits_of_steps(steps: Float[Array, "2 2"], widest: np.ndarray) -> Float[Array, "2"]:
    """b = log2(range / d + 1) per role, where range / d = (2^widest - 1) * 2^(top - step).

    DQ's log2(q_max / d + 1) + 1 counts one level more, the code that a symmetric grid leaves
    out; 0 for a role that is not there.
    """
    count = np.exp2(widest) - 1
    real = jnp.log2(count * jnp.exp2(steps[:, 1] - steps[:, 0]) + 1)
    return jnp.where(widest > 0, real, 0.0)


def steps_of_bits(bits: np.ndarray, widest: np.ndarray) -> np.ndarray:
    """float32 [2, 2]: the range as it is, and the step that makes the widths `bits` [2]."""
    levels = np.maximum(np.exp2(bits) - 1, 1e-3)
    step = np.log2(np.maximum(np.exp2(widest) - 1, 1e-3) / levels)
    return np.stack([np.where(widest > 0, step, 0), np.zeros(2)], axis=1).astype(np.float32)


def _widest(specs: tuple[Spec, ...], branches: tuple[Any, ...]) -> Affine | None:
    """The integer grid of most bits, without learned rounding; None if there is none."""
    grids = [
        (spec.format.bits, k) for k, spec in enumerate(specs) if isinstance(spec.format, Integer)
    ]
    if not grids:
        return None
    widest = branches[max(grids)[1]]
    return widest.affine if isinstance(widest, SoftRound) else widest


def _with_tied(found: QParams, plan: Plan) -> QParams:
    """Tied tensors get the quantizer they share."""
    tied = {t: found[leader] for t, leader in plan.tied.items() if leader in found}
    return {**found, **tied}
