"""A quantizer whose small leaves lie in one vector of numbers, together with those of others."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jqnt.types import Leaf

__all__ = ["Packed", "Slot"]

_SMALL = 1 << 16
"""Tensors of up to so many elements (most weights) are quantized whether it counts or not: a branch
takes longer than they do, and longer to compile."""


@struct.dataclass
class Slot:
    """Where a leaf of `shape` lies in the vector."""

    offset: int = struct.field(pytree_node=False)
    shape: tuple[int, ...] = struct.field(pytree_node=False)


@struct.dataclass
class Packed:
    """x -> kinds[kind[tensor]](x), or x where that is negative: `Select` for one of many tensors.

    The leaves of `kinds` are slots of `numbers`, or stacks of which place[tensor] counts; all are
    taken where they are used: in a branch that is not taken they cost nothing, and in one that is
    they are no operation of their own.
    """

    kinds: tuple[Any, ...]
    kind: Leaf
    place: Leaf
    numbers: Leaf
    tensor: int = struct.field(pytree_node=False)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        def filled(leaf: Any) -> Any:
            if not isinstance(leaf, Slot):
                return leaf[self.place[self.tensor]]
            end = leaf.offset + prod(leaf.shape)
            return self.numbers[leaf.offset : end].reshape(leaf.shape)

        def run(quantizer: Any, x: Any) -> Any:
            return jax.tree.map(filled, quantizer, is_leaf=lambda x: isinstance(x, Slot))(x)

        if x.size <= _SMALL:
            found = x
            for k, own in enumerate(self.kinds):
                found = jnp.where(self.kind[self.tensor] == k, run(own, x), found)
            return found
        kinds = [partial(run, own) for own in self.kinds]
        return jax.lax.switch(self.kind[self.tensor] + 1, [lambda x: x, *kinds], x)
