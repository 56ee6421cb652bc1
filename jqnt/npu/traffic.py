"""Bytes between DRAM and the on-chip memory: weights, tiles that do not fit, spills."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.npu.devices import Device
from jqnt.npu.elements import Elements
from jqnt.npu.engines import like, mask
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import Calculus
from jqnt.npu.workload import Workload

__all__ = ["moved_weight_bytes", "tiled_bytes"]


def moved_weight_bytes(workload: Workload, device: Device, pair: Pair) -> Float[Array, " groups"]:
    """Bytes of weights and biases that move once.

    Weights of under 8 bits are moved as 8 bits unless the device's rule admits the group.
    """
    d, rule = workload.dims, device.narrow
    kinds = mask(kind in rule.kinds for kind in workload.kinds)
    kernel = jnp.maximum(d.kernel_height, d.kernel_width) <= rule.kernel
    stride = jnp.maximum(d.stride_height, d.stride_width) <= rule.stride
    channels = d.groups * d.out_channels > rule.above_out_channels
    narrow = kinds & kernel & stride & channels
    wide = max(pair.weight_bits, 8)
    bits = [device.stored_bits.get(f"w{b}", float(b)) for b in (pair.weight_bits, wide)]
    bits = jnp.where(narrow, *bits)
    return workload.weight_elements * bits / 8 + workload.bias_elements * 4


def tiled_bytes(
    workload: Workload,
    device: Device,
    pair: Pair,
    elements: Elements,
    calculus: Calculus,
) -> tuple[Float[Array, " groups"], Float[Array, " groups"]]:
    """(weight bytes, activation bytes) through DRAM, for the best of three orders of tiles.

    Of the on-chip memory V, what stays alive beside a group's own activations is taken first; of
    the group's inputs A and results R, that which exceeds V comes from and goes to DRAM. Half of
    V holds the operand that stays, half what streams past it:

        weights stay     W + A ceil(W / (V/2)) + R
        inputs stay      W ceil((A + R) / (V/2)) + A + halo + R
        results stay     square tiles of half the memory: both operands come sqrt-often

    as in DOSA (Hong et al. 2023), but with whole passes. Nothing is fetched twice while it fits,
    so that without a shortage this is the weights alone.
    """
    size = pair.activation_bits / 8
    weights = moved_weight_bytes(workload, device, pair)
    own = (workload.in_elements + workload.out_elements) * size
    if not elements.residency:
        spilled = own
    elif elements.tiling:
        need, room = workload.live_elements * size, device.vtcm_bytes
        beside = jnp.maximum(need - own, 0.0)  # what is alive though the group does not touch it
        spilled = calculus.largest(need, room) - calculus.largest(beside, room)
    else:
        spilled = 0.0 * own
    if not elements.tiling:
        return weights, spilled
    half = jnp.maximum(device.vtcm_bytes / 2, 1.0)
    granule = like(weights, half)
    passes = jnp.maximum(calculus.round_up(weights, granule) / half, 1.0)
    strips = jnp.maximum(calculus.round_up(own, granule) / half, 1.0)
    share = spilled / jnp.maximum(own, 1.0)
    read = workload.in_elements * size * share
    d = workload.dims
    rows = jnp.maximum(d.kernel_height - d.stride_height, 0.0)
    halo = rows * read / jnp.maximum(d.height * d.stride_height, 1.0) * (strips - 1.0)
    square = jnp.maximum(jnp.sqrt(jnp.minimum(passes, strips)), 1.0)
    extra = calculus.smallest(
        read * (passes - 1.0),
        weights * (strips - 1.0) + halo,
        (read + weights) * (square - 1.0) + halo,
    )
    short = spilled > 0
    return weights, spilled + jnp.where(short, extra, 0.0)
