"""Questions of design: which numbers of a device a latency hangs on, and what others buy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, nearest
from jqnt.npu.devices import Device
from jqnt.npu.elements import PLAN
from jqnt.npu.knobs import paths_of
from jqnt.npu.pairs import Pair
from jqnt.npu.tables import latency
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["elasticities", "with_numbers"]


def with_numbers(device: Device, numbers: Mapping[str, Leaf]) -> Device:
    """The device with other numbers, by dotted name ("vtcm_bytes", "macs_per_s.w8a8").

    Raises ConfigError for a name that the device does not have, or a negative number.
    """
    known = paths_of(device)
    for name, value in numbers.items():
        if name not in known:
            raise ConfigError(
                f"device {device.name!r} has no number {name!r}{nearest(name, known)}"
            )
        if isinstance(value, int | float) and not value >= 0:
            raise ConfigError(f"{device.name}: {name} = {value}; must be zero or more")
    structure = jax.tree.structure(device)
    return jax.tree.unflatten(structure, [numbers.get(name, x) for name, x in known.items()])


def elasticities(
    workload: Workload, choice: Encodings | Mapping[str, str | Pair] | str | Pair, device: Device
) -> dict[str, float]:
    """Percent of a plan's latency per percent of each number of the device, largest first.

    d log latency / d log number: -0.6 for "dram_bytes_per_s" says that one percent more bandwidth
    takes 0.6 % off. Numbers without effect are left out.
    """
    numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), device)
    seconds, slopes = jax.value_and_grad(lambda d: latency(workload, choice, d, PLAN))(numbers)
    values, slopes = paths_of(numbers), paths_of(slopes)
    found = {name: float(slopes[name] * value / seconds) for name, value in values.items()}
    order = sorted(found, key=lambda name: -abs(found[name]))
    return {name: found[name] for name in order if abs(found[name]) > 1e-4}
