"""What fitting may turn: groups of device numbers that scale together, with their priors."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import ConfigError, nearest
from jqnt.npu.devices import Device
from jqnt.types import Leaf

__all__ = ["GENERAL", "HEXAGON", "Knob", "paths_of", "scaled", "start_values"]


@dataclass(frozen=True)
class Knob:
    """A factor exp(value) on all numbers of the device whose dotted names are `paths`.

    A path may hold wildcards, as file names do ("macs_per_s.w*"). `spread` is the prior standard
    deviation of the value (of its mean over devices, if there are several), `apart` that of one
    device from their mean; 0 means that all devices share one value.
    """

    name: str
    paths: tuple[str, ...]
    spread: float = 0.4
    apart: float = 0.0

    def penalty(self, value: Float[Array, "..."]) -> Float[Array, ""]:
        """Minus the logarithm of the prior, up to a constant."""
        mean = jnp.mean(value)
        within = jnp.sum((value - mean) ** 2) / (2 * self.apart**2) if self.apart else 0.0
        return mean**2 / (2 * self.spread**2) + within


GENERAL = (
    Knob("bandwidth", ("dram_bytes_per_s",), 0.7),
    Knob("macs", ("macs_per_s.*",), 1.0),
    Knob("vector", ("vector_per_s.*", "depthwise_macs_per_s.*", "vtcm_bytes_per_s"), 0.7),
    Knob("overheads", ("dispatch_s", "serial_s"), 0.5),
    Knob("graph", ("graph_s",), 0.5),
)
"""Any device by itself: its bandwidth, the rates of its engines, and its overheads."""

HEXAGON = (
    Knob("bandwidth", ("dram_bytes_per_s",), 0.7, 0.4),
    Knob("macs_int", ("macs_per_s.w*",), 1.0, 1.0),
    Knob("macs_float", ("macs_per_s.float16",), 1.0, 1.0),
    Knob("vector_int", ("vector_per_s.a*", "depthwise_macs_per_s.w*", "vtcm_*_s"), 0.7, 0.4),
    Knob("vector_float", ("vector_per_s.float16", "depthwise_macs_per_s.float16"), 0.7, 0.4),
    Knob("overheads", ("dispatch_s", "serial_s"), 0.5, 0.3),
    Knob("graph", ("graph_s",), 0.4, 0.2),
    Knob("vector_a16", ("vector_per_s.a16", "depthwise_macs_per_s.w?a16")),
    Knob("macs_a16", ("macs_per_s.w?a16",)),
    Knob("stream", ("vtcm_bytes_per_s",)),
    Knob("fill", ("fill_pixels",), 0.7),
    Knob("depthwise", ("depthwise_macs_per_s.*",)),
    Knob("serial", ("serial_s",)),
    Knob("grouped", ("grouped_cost",), 0.2),
    Knob("image", ("granules.image",), 0.5),
    Knob("divide", ("vector_cost.divide",)),
    Knob("affine", ("vector_cost.affine", "vector_cost.affine@a16", "vector_cost.convert")),
    Knob("softmax", ("vector_cost.softmax",)),
    Knob("normalize", ("vector_cost.normalize",)),
)  # fmt: skip
"""Hexagon: seven numbers of each device (bandwidth, rates, overheads), twelve structural
ones that all devices share."""


def paths_of(device: Device) -> dict[str, Any]:
    """Dotted name -> number, for every number of a device."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(device):
        found[".".join(str(getattr(k, "name", getattr(k, "key", k))) for k in path)] = leaf
    return found


def start_values(knobs: Sequence[Knob], devices: int) -> dict[str, Array]:
    """Zeros: a scalar per shared knob, one per device for the others."""
    return {k.name: jnp.zeros(devices if k.apart else ()) for k in knobs}


def scaled(device: Device, knobs: Sequence[Knob], values: Mapping[str, Leaf]) -> Device:
    """The device with the knobs turned; ConfigError for a path that matches nothing."""
    known = paths_of(device)
    factor: dict[str, Any] = {}
    for knob in knobs:
        for path in knob.paths:
            names = fnmatch.filter(known, path)
            if not names:
                raise ConfigError(f"knob {knob.name!r}: no number {path!r}{nearest(path, known)}")
            for name in names:
                factor[name] = factor.get(name, 0.0) + values[knob.name]
    leaves, structure = jax.tree_util.tree_flatten(device)
    turned = [
        leaf * jnp.exp(factor[name]) if name in factor else leaf
        for name, leaf in zip(known, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, turned)
