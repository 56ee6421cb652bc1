"""The cost of every group in one pair of formats: compute, traffic, latency, energy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.npu.array import array_times
from jqnt.npu.blocks import choose_blocks
from jqnt.npu.devices import Device
from jqnt.npu.elements import ALL, Elements
from jqnt.npu.engines import cpu_time, mask, product_time, vector_time
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import EXACT, Calculus
from jqnt.npu.traffic import tiled_bytes
from jqnt.npu.work import PRODUCT_KINDS
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["Costs", "group_costs", "legal_groups", "with_blocks"]


@struct.dataclass
class Costs:
    """Per group: seconds by cause, bytes, operations, joules.

    latency = overlap * max(compute, memory) + (1 - overlap) * (compute + memory) + overhead,
    where memory is what prefetching has left of the DRAM time.
    """

    matrix_s: Leaf
    vector_s: Leaf
    compute_s: Leaf
    memory_s: Leaf
    hidden_s: Leaf
    overhead_s: Leaf
    latency_s: Leaf
    weight_bytes: Leaf
    traffic_bytes: Leaf
    vtcm_bytes: Leaf
    macs: Leaf
    bitops: Leaf
    energy_j: Leaf


def group_costs(
    workload: Workload,
    device: Device,
    pair: Pair,
    elements: Elements = ALL,
    calculus: Calculus = EXACT,
) -> Costs:
    """The cost of each group when it, and the group before it, run in `pair`.

    compute = max(product, stream of its operands on chip, vector work)
    memory  = (weights + spilled activations) / bandwidth - what prefetching hides
    """
    if device.array is not None and workload.blocks is None:
        workload = with_blocks(workload, device)
    workload, device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (workload, device))
    if device.array is not None:
        return _array_costs(workload, device, pair, elements, calculus)
    bytes_each = pair.activation_bits / 8
    own_bytes = (workload.in_elements + workload.out_elements) * bytes_each
    matrix_s = product_time(workload, device, pair, elements, calculus)
    if elements.streaming:
        product = mask(kind in PRODUCT_KINDS and kind != "depthwise" for kind in workload.kinds)
        stream_s = own_bytes / device.vtcm_bytes_per_s
        matrix_s = jnp.where(product, calculus.largest(matrix_s, stream_s), matrix_s)
    vector_s = vector_time(workload, device, pair, elements, calculus)
    if elements.transposes:
        moving = device.cost_of("move", pair.activation) / device.vector_per_s[pair.activation]
        vector_s = vector_s + workload.layout_elements * moving
    compute_s = calculus.largest(matrix_s, vector_s)

    weight_bytes, activation_bytes = tiled_bytes(workload, device, pair, elements, calculus)
    bandwidth = device.dram_bytes_per_s * device.dram_efficiency
    weight_s, activation_s = weight_bytes / bandwidth, activation_bytes / bandwidth
    hidden_s = jnp.zeros_like(weight_s)
    if elements.prefetch:
        busy_s = weight_s + activation_s
        free_s = (calculus.largest(compute_s, busy_s) - busy_s) * device.prefetch
        before = jnp.concatenate([jnp.zeros(1), free_s[:-1]]) * (1 - workload.starts)
        hidden_s = calculus.smallest(before, weight_s)
    memory_s = weight_s - hidden_s + activation_s

    longer = calculus.largest(compute_s, memory_s)
    shared_s = (1 - device.overlap) * (compute_s + memory_s - longer)
    overhead_s = _overhead(workload, device, elements)
    latency_s = longer + shared_s + overhead_s
    if elements.fallback and device.cpu:
        on_cpu = mask(op in device.cpu for op in workload.ops)
        latency_s = jnp.where(on_cpu, cpu_time(workload, device), latency_s)
    return _costs(
        workload,
        device,
        pair,
        seconds={
            "matrix_s": matrix_s,
            "vector_s": vector_s,
            "compute_s": compute_s,
            "memory_s": memory_s,
            "hidden_s": hidden_s,
            "overhead_s": overhead_s,
            "latency_s": latency_s,
        },
        moved=(weight_bytes, activation_bytes),
    )


def with_blocks(workload: Workload, device: Device) -> Workload:
    """The workload with the blocks that a compiler would take on the device's array, if it has
    one. Blocks follow from concrete shapes: this cannot be traced."""
    if device.array is None:
        return workload
    widths = sorted({pair.activation_bits for pair in device.pairs})
    blocks = {bits: choose_blocks(workload, device.array, bits) for bits in widths}
    return replace(workload, blocks=blocks)


def legal_groups(workload: Workload, device: Device, pair: Pair) -> np.ndarray:
    """Which groups may run in `pair`: a rule for the operator, or any pair of the device."""
    rules = dict(device.legal)
    known = {p.name for p in device.pairs}
    return np.array([pair.name in rules.get(op, known) for op in workload.ops], bool)


def _overhead(workload: Workload, device: Device, elements: Elements) -> Float[Array, " groups"]:
    overhead_s = jnp.zeros_like(workload.serial)
    if elements.overheads:
        overhead_s = overhead_s + device.dispatch_s
    if elements.serial:
        overhead_s = overhead_s + workload.serial * device.serial_s
    return overhead_s


def _array_costs(
    workload: Workload, device: Device, pair: Pair, elements: Elements, calculus: Calculus
) -> Costs:
    """On an array of blocks: the slowest of the array and its memories."""
    free = device.fused if elements.fusion else ()
    blocks = workload.blocks[pair.activation_bits]
    times = array_times(workload, device, pair, blocks, free, calculus)
    overhead_s = _overhead(workload, device, elements)
    latency_s = calculus.largest(times.array_s, times.memory_s) + overhead_s
    if elements.fallback and device.cpu:
        on_cpu = mask(op in device.cpu for op in workload.ops)
        latency_s = jnp.where(on_cpu, cpu_time(workload, device), latency_s)
    nothing = jnp.zeros_like(latency_s)
    return _costs(
        workload,
        device,
        pair,
        seconds={
            "matrix_s": times.array_s,
            "vector_s": nothing,
            "compute_s": times.array_s,
            "memory_s": times.memory_s,
            "hidden_s": nothing,
            "overhead_s": overhead_s,
            "latency_s": latency_s,
        },
        moved=(times.weight_bytes, times.activation_bytes),
    )


def _costs(
    workload: Workload,
    device: Device,
    pair: Pair,
    seconds: dict[str, Array],
    moved: tuple[Array, Array],
) -> Costs:
    """The times with bytes, operations and joules beside them."""
    macs = workload.dims.macs
    own_bytes = (workload.in_elements + workload.out_elements) * pair.activation_bits / 8
    alive = workload.live_elements * pair.activation_bits / 8
    stored = workload.weight_elements * pair.weight_bits / 8 + workload.bias_elements * 4
    traffic_bytes = moved[0] + moved[1]
    energy_j = (
        macs * device.energy_j.get(pair.name, 0.0)
        + traffic_bytes * device.energy_j.get("dram_byte", 0.0)
        + own_bytes * device.energy_j.get("vtcm_byte", 0.0)
    )
    return Costs(
        **seconds,
        weight_bytes=stored,
        traffic_bytes=traffic_bytes,
        vtcm_bytes=jnp.minimum(alive + moved[0], device.vtcm_bytes),
        macs=macs,
        bitops=macs * pair.weight_bits * pair.activation_bits,
        energy_j=energy_j,
    )
