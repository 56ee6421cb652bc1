"""Where a training stands, on disk: saved by Orbax, restored bit by bit."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jqnt.errors import DataError

__all__ = ["Checkpoints"]


class Checkpoints:
    """The latest `keep` states (None: all) under a folder, one a step.

    A half-written one is never seen.

    A state is any pytree of arrays, random keys among them. Arrays come back with the type, the
    bits and the placement on devices that the example has.
    """

    def __init__(self, directory: str | Path, keep: int | None = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self._manager.latest_step()

    def steps(self) -> tuple[int, ...]:
        """All steps that were saved whole and are kept."""
        return tuple(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Returns when the state is on disk."""
        leaves = {f"{i:05d}": _plain(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        self._manager.save(step, args=ocp.args.StandardSave(leaves), force=True)

    def restore(self, step: int, example: Any) -> Any:
        """The state of `step`, in the structure of `example`.

        Raises DataError if what was saved has other leaves: another network, plan or optimizer.
        """
        leaves, structure = jax.tree.flatten(example)
        wanted = {f"{i:05d}": _shape(_plain(leaf)) for i, leaf in enumerate(leaves)}
        saved = self._manager.item_metadata(step)
        found = {name: (tuple(m.shape), np.dtype(m.dtype)) for name, m in dict(saved).items()}
        expected = {name: (tuple(s.shape), np.dtype(s.dtype)) for name, s in wanted.items()}
        if found != expected:
            raise DataError(
                f"the checkpoint of step {step} in {self._manager.directory} holds {len(found)} "
                f"arrays that are not this training's {len(expected)}: another network, plan or "
                f"optimizer wrote it; give another folder"
            )
        kept = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return structure.unflatten(_like(kept[f"{i:05d}"], leaf) for i, leaf in enumerate(leaves))

    def leaves(self, step: int) -> list[np.ndarray]:
        """The arrays of `step` in the order in which they were saved, whatever they are."""
        saved = dict(self._manager.item_metadata(step))
        wanted = {name: np.empty(m.shape, m.dtype) for name, m in saved.items()}
        kept = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return [np.asarray(kept[name]) for name in sorted(kept)]

    def close(self) -> None:
        """Waits for and ends what Orbax runs beside."""
        self._manager.close()


def _plain(leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(kept: Any, leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return kept
    return jax.random.wrap_key_data(kept, impl=jax.random.key_impl(leaf))
