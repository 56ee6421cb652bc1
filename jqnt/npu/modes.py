"""Performance modes: a device with its clocks turned down, from burst to power saver."""

from dataclasses import replace

import jax

from jqnt.errors import ConfigError, nearest
from jqnt.npu.devices import Device

__all__ = ["in_mode"]


def in_mode(device: Device, mode: str) -> Device:
    """The device with its engines' and memory's rates scaled as its profile says for `mode`.

    Rates of engines and of the on-chip memory follow the engines' clock, dispatch and other
    overheads are the longer for it, DRAM bandwidth follows its own. Raises ConfigError for a mode
    that the device does not have.
    """
    modes = {name: factors for name, *factors in device.modes}
    if mode not in modes:
        raise ConfigError(f"device {device.name!r} has no mode {mode!r}{nearest(mode, modes)}")
    engines, memory = modes[mode]

    def faster(numbers):
        return jax.tree.map(lambda x: x * engines, numbers)

    def longer(number):
        return number / engines

    return replace(
        device,
        macs_per_s=faster(device.macs_per_s),
        depthwise_macs_per_s=faster(device.depthwise_macs_per_s),
        vector_per_s=faster(device.vector_per_s),
        vtcm_bytes_per_s=faster(device.vtcm_bytes_per_s),
        dram_bytes_per_s=device.dram_bytes_per_s * memory,
        dispatch_s=longer(device.dispatch_s),
        serial_s=longer(device.serial_s),
        graph_s=longer(device.graph_s),
    )
