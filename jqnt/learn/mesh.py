"""Several devices: batches split over a mesh, weights whole on each device or split as well."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from jqnt.errors import ConfigError

__all__ = ["Spread", "collect", "data_mesh", "place", "spread_batches"]

_AXIS = "data"


def data_mesh(devices: Iterable[Any] | None = None) -> Mesh:
    """A mesh of one axis over these devices, or all there are, of all processes."""
    found = np.asarray(list(jax.devices() if devices is None else devices))
    return Mesh(found, (_AXIS,))


def place(value: Any, mesh: Mesh, *, sharded: bool = False) -> Any:
    """`value` on the mesh: whole on every device, or (`sharded`) each array split over them along
    its longest axis that the number of devices divides, where it has one.

    The computation is the same either way; what is split is gathered where it is used.
    """

    def put(leaf: Any) -> Any:
        shape = np.shape(leaf)
        spec = _split(shape, mesh.size) if sharded else PartitionSpec()
        return _put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, value)


def collect(value: Any) -> Any:
    """`value` with every array whole and in this process's memory, as numpy.

    What several processes hold in parts is sent around: all of them must call it.
    """

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(whole, value)


@struct.dataclass
class Spread:
    """A source whose batches are split over the mesh along their first axis.

    Every sample is seen that `source` alone would give, so that the loss is the same.
    """

    source: Any
    mesh: Mesh = struct.field(pytree_node=False)

    def take(self, index: Int[Array, ""], key: PRNGKeyArray) -> Any:
        """The source's batch. Raises ConfigError if the devices do not divide it."""
        batch = self.source.take(index, key)
        for leaf in jax.tree.leaves(batch):
            _check(leaf.shape, self.mesh)
        sharding = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        return jax.lax.with_sharding_constraint(batch, sharding)


def spread_batches(batches: Iterable[Mapping[str, Any]], mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Each batch with its first axis split over the mesh: for calibration and reconstruction.

    With several processes each gives its own part. Raises ConfigError if the devices do not
    divide a batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    for batch in batches:
        for value in batch.values():
            _check(np.shape(value), mesh, jax.process_count())
        yield {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
            for name, value in batch.items()
        }


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = _put(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    # Each process holds all of it and hands over the parts of its own devices.
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _split(shape: tuple[int, ...], count: int) -> PartitionSpec:
    fits = [axis for axis, size in enumerate(shape) if size and size % count == 0]
    if not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda axis: shape[axis])
    return PartitionSpec(*(_AXIS if axis == longest else None for axis in range(len(shape))))


def _check(shape: tuple[int, ...], mesh: Mesh, processes: int = 1) -> None:
    if not shape or (shape[0] * processes) % mesh.size:
        size = shape[0] * processes if shape else "no axis"
        raise ConfigError(
            f"a batch of {size} cannot be split over {mesh.size} devices: take a multiple"
        )
