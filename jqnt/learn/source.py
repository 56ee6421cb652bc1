"""Where a training step's batch comes from: the same one, a random draw, or a stream."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Int, PRNGKeyArray

from jqnt.errors import DataError
from jqnt.learn.mesh import Spread
from jqnt.types import Leaf

__all__ = ["Batches", "Draw", "Source", "Stack", "Stream", "Whole", "sources"]


@struct.dataclass
class Whole:
    """The same batch at every step: exact full-batch objectives."""

    data: Leaf

    def take(self, index: Int[Array, ""], key: PRNGKeyArray) -> Any:
        """All of it."""
        return self.data


@struct.dataclass
class Draw:
    """`size` samples at every step, drawn without replacement along the leading axis of `data`."""

    data: Leaf
    size: int = struct.field(pytree_node=False)

    def take(self, index: Int[Array, ""], key: PRNGKeyArray) -> Any:
        """A fresh draw for this key."""
        count = jax.tree.leaves(self.data)[0].shape[0]
        if count < self.size:
            raise DataError(f"a batch of {self.size} cannot be drawn from {count} samples")
        chosen = jax.random.permutation(key, count)[: self.size]
        return jax.tree.map(lambda x: x[chosen], self.data)


@struct.dataclass
class Stack:
    """The batches of one chunk of a stream, along a new leading axis."""

    data: Leaf

    def take(self, index: Int[Array, ""], key: PRNGKeyArray) -> Any:
        """The batch of step `index` of the chunk."""
        return jax.tree.map(lambda x: x[index], self.data)


Source = Whole | Draw | Stack | Spread

Stream = Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]
"""Batches in order: an iterable that can be iterated again, or a function that starts it anew."""

Batches = Whole | Draw | Spread | Stream
"""Batches as `fit` takes them; a stream is gone through over and over, one batch a step."""


def sources(batches: Batches, start: int, stop: int, chunk: int) -> Iterator[tuple[Source, int]]:
    """(source, steps) for steps `start` to `stop`, at most `chunk` steps each.

    A stream's chunk ends early where the batches' shapes change. Raises DataError for an
    empty stream.
    """
    if isinstance(batches, Spread):
        for source, count in sources(batches.source, start, stop, chunk):
            yield Spread(source, batches.mesh), count
        return
    if isinstance(batches, Whole | Draw):
        for first in range(start, stop, chunk):
            yield batches, min(chunk, stop - first)
        return
    pending: list[Mapping[str, Any]] = []
    length = 0
    for batch in _stream(batches, start, stop):
        if pending and (len(pending) == chunk or _shapes(batch) != _shapes(pending[0])):
            length = max(length, len(pending))
            yield _stacked(pending, length), len(pending)
            pending = []
        pending.append(batch)
    if pending:
        yield _stacked(pending, length), len(pending)


def _stream(batches: Stream, start: int, stop: int) -> Iterator[Mapping[str, Any]]:
    """The batches of steps `start` to `stop`; step i has batch i modulo their number."""
    step = 0
    while step < stop:
        before = step
        for batch in batches if isinstance(batches, Iterable) else batches():
            if step >= stop:
                return
            if step >= start:
                yield batch
            step += 1
        if step == before:
            raise DataError(
                "the batches are empty (an iterator that was used up counts as empty: pass a "
                "list, or a function that starts anew)"
            )


def _shapes(batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in batch.items()}


def _stacked(batches: list[Mapping[str, Any]], length: int) -> Stack:
    """Stacked and padded to `length` with the last, so that a remainder is no other program."""
    batches = batches + batches[-1:] * (length - len(batches))
    return Stack({name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
