"""Callable pytrees: float tensor -> the same tensor on a grid, differentiable in every leaf."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jqnt.affine import divide, fake_quant, grid_limits, rectified_sigmoid, round_ste
from jqnt.formats import Microscaling, Minifloat
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.microscaling import microscaled, nearest_minifloat
from jqnt.rounding import Rounding, rounded
from jqnt.scales import ScaleFormat, gridded
from jqnt.types import Leaf

__all__ = [
    "Affine",
    "Cast",
    "Dropped",
    "Half",
    "Microscaled",
    "Mixture",
    "Select",
    "SoftRound",
    "Stochastic",
    "affine_of",
    "alike",
]


@struct.dataclass
class Affine:
    """x -> (clip(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale.

    `scale` and `zero_point` have the shape that `granularity` says (see `Granularity.expand`);
    `bits` is a scalar or has their shape. qmin and qmax follow from `bits`, `signed` and
    `strict` inside the trace, so that another width is no other program. A `shifted` grid stands
    half a step above its codes: (clip(round(x / scale - 1/2), qmin, qmax) + 1/2) * scale. A
    `strict` grid of one bit has no zero: x -> scale * sign(x).
    `scale_format` is a grid that the scales themselves lie on (see `on_grid`).
    """

    scale: Leaf
    zero_point: Leaf
    bits: Leaf
    signed: bool = struct.field(pytree_node=False, default=True)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)
    shifted: bool = struct.field(pytree_node=False, default=False)
    rounding: Rounding = struct.field(pytree_node=False, default="half_even")
    scale_format: ScaleFormat | None = struct.field(pytree_node=False, default=None)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.quantize(x)

    def quantize(self, x: Float[Array, "..."], noise: Any = None) -> Float[Array, "..."]:
        """x on the grid; with `noise`, uniform in [0, 1), rounded at random (see `Stochastic`)."""
        scale, zero_point, qmin, qmax = grid(self, x.shape)
        if self.shifted:
            zero, one = jnp.float32(0), jnp.float32(1)
            v = divide(x, scale) - 0.5
            return (fake_quant(v, one, zero, qmin, qmax, noise, self.rounding) + 0.5) * scale
        y = fake_quant(x, scale, zero_point, qmin, qmax, noise, self.rounding)
        if not self.strict:
            return y
        return jnp.where(one_bit(self, x.shape), scale * sign_ste(divide(x, scale)), y)

    @property
    def affine(self) -> "Affine":
        """Itself: the grid that a quantizer of any kind ends on (see `affine_of`)."""
        return self

    def codes(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The integers, as float32: clip(round(x / scale) + zero_point, qmin, qmax)."""
        scale, zero_point, qmin, qmax = grid(self, x.shape)
        v = divide(x, scale) - 0.5 * self.shifted
        code = jnp.clip(rounded(v, self.rounding) + zero_point, qmin, qmax)
        return jnp.where(one_bit(self, x.shape), sign_ste(v), code) if self.strict else code

    def on_grid(self) -> "Affine":
        """The same function with the scales that it uses as its leaves."""
        return replace(self, scale=gridded(self.scale, self.scale_format), scale_format=None)


@struct.dataclass
class Stochastic:
    """x -> `quantizer`(x) with each value rounded up with the probability of its fraction.

    The expectation inside the grid is x (Gupta et al. 2015, eq. 2); `key` decides.
    """

    quantizer: Affine
    key: Leaf

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.quantizer.quantize(x, jax.random.uniform(self.key, x.shape))


@struct.dataclass
class SoftRound:
    """w -> (clip(floor(w / scale) + h(logit) + zero_point, qmin, qmax) - zero_point) * scale.

    AdaRound (Nagel et al. 2020, eq. 22); h is the rectified sigmoid. `logit` has w's shape;
    `harden` turns the choice into up (h >= 1/2) or down. On a strict grid of one bit up is +1
    and down is -1, whatever w.
    """

    scale: Leaf
    zero_point: Leaf
    bits: Leaf
    logit: Leaf
    signed: bool = struct.field(pytree_node=False, default=True)
    strict: bool = struct.field(pytree_node=False, default=False)
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._between(x, rectified_sigmoid(self.logit))

    def harden(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The value on the grid after rounding each weight as its logit says."""
        return self._between(x, jnp.asarray(self.logit) >= 0)

    def _between(self, x: Array, h: Array) -> Array:
        scale, zero_point, qmin, qmax = grid(self, x.shape)
        below, above, _ = neighbours(self, divide(x, scale), x.shape)
        code = below + h * (above - below) + zero_point
        return (jnp.clip(code, qmin, qmax) - zero_point) * scale

    @property
    def affine(self) -> Affine:
        """The grid without the rounding."""
        return Affine(
            self.scale, self.zero_point, self.bits, self.signed, self.strict, self.granularity
        )


@struct.dataclass
class Cast:
    """x -> cast(x / scale) * scale: the nearest number of a minifloat format, saturating.

    Without a scale, x -> cast(x). The derivative is 1 inside and, in the scale, that of LSQ:
    cast(v) - v inside, the largest number outside (v = x / scale).
    """

    format: Minifloat = struct.field(pytree_node=False)
    scale: Leaf = None
    granularity: Granularity = struct.field(pytree_node=False, default=PER_TENSOR)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.scale is None:
            return nearest_minifloat(x, self.format)
        scale = self.granularity.expand(self.scale, x.shape)
        return nearest_minifloat(divide(x, scale), self.format) * scale


@struct.dataclass
class Microscaled:
    """x -> blocks along `axis` on the grid of `format`, each with a scale from its own values.

    `scale` is the float32 scale of the whole tensor, and 1 where the format has none. The
    derivative is 1 inside the element's range; none passes to the scales.
    """

    scale: Leaf
    format: Microscaling = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False, default=-1)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return microscaled(x, self.format, self.axis, self.scale)


@struct.dataclass
class Dropped:
    """x -> `quantizer`(x), but each element stays as it is with a probability (QDrop).

    Wei et al. 2022, eq. 9: the quantization of activations is dropped at random while rounding
    is learned. `key` decides which elements.
    """

    quantizer: Any
    probability: Leaf
    key: Leaf

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        dropped = jax.random.uniform(self.key, x.shape) < self.probability
        return jnp.where(dropped, x, self.quantizer(x))


@struct.dataclass
class Half:
    """x -> `quantizer`(x) in float32, rounded to bfloat16: between the products of a network whose
    weights stay float32 in the optimizer (Micikevicius et al. 2018)."""

    quantizer: Any

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.quantizer(x.astype(jnp.float32)).astype(jnp.bfloat16)


@struct.dataclass
class Mixture:
    """x -> sum_k probability_k * branch_k(x) (EdMIPS, Cai & Vasconcelos 2020, eq. 8).

    `probability` has one entry per branch and sums to one; `bind` makes it from the logits of
    a group, so that the two quantizers of a (weight, activation) pair read one joint choice.
    """

    probability: Leaf
    branches: tuple[Any, ...]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        p = jnp.asarray(self.probability)
        total = p[0] * self.branches[0](x)
        for k, branch in enumerate(self.branches[1:], start=1):
            total = total + p[k] * branch(x)
        return total

    @property
    def chosen(self) -> Any:
        """The most probable branch; only outside a trace."""
        return self.branches[int(jnp.argmax(jnp.asarray(self.probability)))]


@struct.dataclass
class Select:
    """x -> branches[index](x), and x itself where `index` is negative.

    `index` is a leaf, so that one program tries every branch. Branches of one structure (the
    widths of a grid, say) are one quantizer whose leaves are picked; only one kind runs.
    """

    index: Leaf
    branches: tuple[Any, ...]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        index = jnp.asarray(self.index)
        kinds = [lambda x: x]
        kind_of = np.zeros(len(self.branches) + 1, np.int32)
        for kind, members in enumerate(alike(self.branches), start=1):
            picked = self.branches[members[0]]
            if len(members) > 1:
                place = jnp.argmax(index == np.array(members))
                picked = jax.tree.map(
                    lambda *leaves, place=place: jnp.stack(leaves)[place],
                    *(self.branches[k] for k in members),
                )
            kinds.append(lambda x, picked=picked: picked(x))
            kind_of[np.array(members) + 1] = kind
        if (kind_of == np.arange(len(kind_of))).all():
            return jax.lax.switch(jnp.maximum(index, -1) + 1, kinds, x)
        return jax.lax.switch(jnp.asarray(kind_of)[jnp.maximum(index, -1) + 1], kinds, x)


def alike(branches: Sequence[Any]) -> list[list[int]]:
    """The indices of branches of one structure whose leaves have the same shapes, by kind."""
    found: dict[Any, list[int]] = {}
    for k, branch in enumerate(branches):
        leaves, structure = jax.tree.flatten(branch)
        found.setdefault((structure, *map(jnp.shape, leaves)), []).append(k)
    return list(found.values())


def affine_of(quantizer: Any) -> Affine | None:
    """The integer grid that holds a quantizer's values; None if there is none."""
    return getattr(quantizer, "affine", None)


def grid(quantizer: Affine | SoftRound, shape: tuple[int, ...]):
    """(scale, zero_point, qmin, qmax), each in a shape that broadcasts against `shape`."""
    expand = quantizer.granularity.expand
    qmin, qmax = grid_limits(
        expand(quantizer.bits, shape), signed=quantizer.signed, strict=quantizer.strict
    )
    zero_point = round_ste(expand(quantizer.zero_point, shape))
    scale = quantizer.scale
    if isinstance(quantizer, Affine) and quantizer.scale_format is not None:
        scale = gridded(scale, quantizer.scale_format)
    return expand(scale, shape), zero_point, qmin, qmax


def one_bit(quantizer: Any, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Where a grid has one bit, in a shape that broadcasts against `shape`."""
    return quantizer.granularity.expand(quantizer.bits, shape) < 1.5


def neighbours(
    quantizer: Affine | SoftRound, v: Float[Array, "..."], shape: tuple[int, ...]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """(the codes below and above v = x / scale, v's place between them from 0 to 1), before the
    zero point; -1 and +1 on a strict grid of one bit."""
    below = jnp.floor(v)
    found = (below, below + 1, v - below)
    if not quantizer.strict:
        return found
    ends = (-jnp.ones_like(v), jnp.ones_like(v), (jnp.clip(v, -1, 1) + 1) / 2)
    one = one_bit(quantizer, shape)
    below, above, fraction = (jnp.where(one, a, b) for a, b in zip(ends, found, strict=True))
    return below, above, fraction


@jax.custom_jvp
def sign_ste(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """+1 for v >= 0, else -1; the derivative is 1 for |v| <= 1 (Courbariaux et al. 2016)."""
    return jnp.where(v >= 0, 1.0, -1.0).astype(v.dtype)


@sign_ste.defjvp
def _sign_ste_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    return sign_ste(v), jnp.where(jnp.abs(v) <= 1, dv, 0)
