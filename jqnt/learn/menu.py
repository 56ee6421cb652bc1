"""The branches of many tensors as rows of numbers: another candidate is other data, no program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import struct

from jqnt.packed import Packed, Slot
from jqnt.quantizers import alike
from jqnt.types import Leaf, Quantizer

__all__ = ["Kinds", "Menu", "Rows", "menu"]

_SMALL = 1 << 14
"""Leaves of up to so many numbers travel in a candidate's row; larger ones (rounding logits)
stay where they are, stacked, and are picked by index."""


@struct.dataclass
class Rows:
    """Candidates: the kind of each tensor's quantizer (-1: none) and its place among those that
    are alike, int32 [candidates, tensors], and the numbers of the small leaves, float32."""

    kind: Leaf
    place: Leaf
    numbers: Leaf


@struct.dataclass
class Kinds:
    """Per tensor, its kinds of quantizers: pytrees with slots for small leaves and stacks of large
    ones."""

    own: tuple[tuple[Any, ...], ...]
    tensors: tuple[str, ...] = struct.field(pytree_node=False)

    def quantizers(self, row: Rows) -> dict[str, Quantizer]:
        """One quantizer per tensor for a candidate, whose row is traced."""
        return {
            name: Packed(own, row.kind, row.place, row.numbers, t)
            for t, (name, own) in enumerate(zip(self.tensors, self.own, strict=True))
        }


@dataclass(frozen=True)
class Menu:
    """The kinds, and what makes the rows: per tensor the (kind, place) of each branch, and per slot
    the numbers of all places."""

    kinds: Kinds
    where: tuple[np.ndarray, ...]
    slots: tuple[tuple[int, int, int, np.ndarray], ...]
    width: int

    def rows(self, branches: np.ndarray) -> Rows:
        """The rows of int [candidates, tensors], a branch of each tensor or -1 for none."""
        found = [where[branches[:, t]] for t, where in enumerate(self.where)]
        kind, place = np.moveaxis(np.stack(found, 1), 2, 0)
        numbers = np.zeros((len(branches), self.width), np.float32)
        for tensor, own, offset, values in self.slots:
            picked = np.where(kind[:, tensor] == own, place[:, tensor], 0)
            numbers[:, offset : offset + values.shape[1]] = values[picked]
        return Rows(kind, place, numbers)


def menu(branches: Mapping[str, tuple[Any, ...]]) -> Menu:
    """The menu of each tensor's branches."""
    kinds, wheres, slots, width = [], [], [], 0
    for t, own in enumerate(jax.device_get(list(branches.values()))):
        where = np.full((len(own) + 1, 2), -1, np.int32)  # the last one is -1, none
        found = []
        for k, members in enumerate(alike(own)):
            where[members] = [(k, place) for place in range(len(members))]
            leaves, structure = jax.tree.flatten(own[members[0]])
            columns = [jax.tree.leaves(own[m]) for m in members]
            packed = []
            for i, leaf in enumerate(leaves):
                values = np.stack([column[i] for column in columns])
                if values.dtype != np.float32 or np.size(leaf) > _SMALL:
                    packed.append(values)
                    continue
                packed.append(Slot(width, np.shape(leaf)))
                slots.append((t, k, width, values.reshape(len(members), -1)))
                width += np.size(leaf)
            found.append(jax.tree.unflatten(structure, packed))
        kinds.append(tuple(found))
        wheres.append(where)
    return Menu(Kinds(tuple(kinds), tuple(branches)), tuple(wheres), tuple(slots), width)
