"""Compute time of a group on the matrix engine, the vector engine, or the CPU."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jqnt.npu.devices import Device
from jqnt.npu.elements import Elements
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import Calculus
from jqnt.npu.work import PRODUCT_KINDS, VECTOR_WORK
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["cpu_time", "like", "mask", "padded_macs", "product_time", "vector_time"]


def product_time(
    workload: Workload, device: Device, pair: Pair, elements: Elements, calculus: Calculus
) -> Float[Array, " groups"]:
    """Seconds on the matrix engine: padded / rate; 0 for a group without a product.

    Depthwise convolutions run at a rate of their own, per padded channel and tap.
    """
    d = workload.dims
    rate = device.macs_per_s[pair.name]
    dense_s = padded_macs(workload, device, elements, calculus) / rate
    taps = d.kernel_height * d.kernel_width
    channels = d.groups * d.out_channels
    if elements.granules:
        channels = calculus.round_up(channels, like(channels, device.granules["vector"]))
    own = device.depthwise_macs_per_s[pair.name] if elements.engines else rate
    depthwise_s = d.pixels * channels * taps / own
    depthwise = mask(kind == "depthwise" for kind in workload.kinds)
    product = mask(kind in PRODUCT_KINDS for kind in workload.kinds)
    return jnp.where(depthwise, depthwise_s, jnp.where(product, dense_s, 0.0))


def padded_macs(
    workload: Workload, device: Device, elements: Elements, calculus: Calculus
) -> Float[Array, " groups"]:
    """Multiply-accumulates with every dimension of the tile filled up.

    Loading a tile of weights takes as long as `fill_pixels` pixels on it, so that the array is
    used by pixels / (pixels + fill_pixels): little by a layer of few pixels. Narrow groups of a
    grouped convolution share a tile block-diagonally: as many as fit side by side. An input of
    few channels (an image) has a smaller multiple of its own.
    """
    d, g, up = workload.dims, device.granules, calculus.round_up
    fill = device.fill_pixels if elements.utilization else 0.0
    taps = d.kernel_height * d.kernel_width
    if not elements.granules:
        return (d.pixels + fill) * d.groups * d.out_channels * d.in_channels * taps
    pixels = up(d.pixels, like(d.pixels, g["pixels"])) + fill
    widest = jnp.maximum(jnp.maximum(d.in_channels, d.out_channels), 1.0)
    beside = jnp.maximum(jnp.floor(g["in_channels"] / widest), 1.0)
    beside = jnp.where(d.groups > 1, jnp.minimum(beside, d.groups), 1.0)
    tiles = up(d.groups / beside, like(d.groups, 1.0))
    inner = up(d.in_channels * beside, like(d.in_channels, g["in_channels"]))
    image = up(d.in_channels, like(d.in_channels, g["image"]))
    few = (d.groups == 1) & (d.in_channels <= 4) & (g["image"] < g["in_channels"])
    inner = jnp.where(few, image, inner)
    outer = up(d.out_channels * beside, like(d.out_channels, g["out_channels"]))
    grouped = jnp.where(d.groups > 1, device.grouped_cost, 1.0)
    return pixels * tiles * inner * outer * taps * grouped


def vector_time(
    workload: Workload, device: Device, pair: Pair, elements: Elements, calculus: Calculus
) -> Float[Array, " groups"]:
    """Seconds of passes over the result: own ones, and fused ones that are not free.

    A pass costs elements * cost / rate; the last dimension fills whole vectors.
    """
    d = workload.dims
    channels = d.groups * d.out_channels
    if elements.granules:
        channels = calculus.round_up(channels, like(channels, device.granules["vector"]))
    free = device.fused if elements.fusion else ()
    tails = np.asarray(
        [
            [sum(w == kind and op not in free for op, w in tail) for kind in VECTOR_WORK]
            for tail in workload.tails
        ],
        np.float32,
    ).reshape(-1, len(VECTOR_WORK))
    passes = workload.passes + tails
    if not elements.engines:
        return d.pixels * channels * passes.sum(1) / device.macs_per_s[pair.name]
    costs = jnp.stack([device.cost_of(kind, pair.activation) for kind in VECTOR_WORK])
    return d.pixels * channels * (passes @ costs) / device.vector_per_s[pair.activation]


def cpu_time(workload: Workload, device: Device) -> Float[Array, " groups"]:
    """Seconds of a group on the CPU: crossings, copies both ways, and its work there."""
    elements = workload.in_elements + workload.out_elements
    crossings = np.asarray(_crossings(workload, device.cpu), np.float32)
    work = workload.dims.macs + elements
    return crossings * device.crossing_s + work / device.cpu_per_s


def like(x: Float[Array, " groups"], value: Leaf) -> Float[Array, " groups"]:
    """A scalar in the shape of `x`."""
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), jnp.shape(x))


def mask(flags: Iterable[bool]) -> np.ndarray:
    """Booleans, one per group."""
    return np.array(list(flags), bool)


def _crossings(workload: Workload, cpu: tuple[str, ...]) -> list[int]:
    """How often execution changes between NPU and CPU on account of each group on the CPU."""
    fallen = [op in cpu for op in workload.ops]
    count = [0] * len(fallen)
    for kind in (0, 1):
        seen = set()
        for edge in workload.edges:
            here, there = (edge[1], edge[0]) if kind == 0 else (edge[0], edge[1])
            if here >= 0 and fallen[here] and here not in seen and (there < 0 or not fallen[there]):
                seen.add(here)
                count[here] += 1
    return count
