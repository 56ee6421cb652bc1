"""The cost of every group in one pair of formats: compute, traffic, latency, energy."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.npu.devices import Device, NarrowWeights
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import EXACT, Calculus
from jqnt.npu.work import VECTOR_WORK
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["Costs", "group_costs", "legal_groups"]


@struct.dataclass
class Costs:
    """Per group: seconds of compute, memory and in all; bytes; operations; joules.

    latency = overlap * max(compute, memory) + (1 - overlap) * (compute + memory) + dispatch.
    """

    compute_s: Leaf
    memory_s: Leaf
    latency_s: Leaf
    weight_bytes: Leaf
    traffic_bytes: Leaf
    vtcm_bytes: Leaf
    macs: Leaf
    bitops: Leaf
    energy_j: Leaf


def group_costs(
    workload: Workload, device: Device, pair: Pair, calculus: Calculus = EXACT
) -> Costs:
    """The cost of each group when it runs in `pair`.

    compute = max(padded macs / rate, vector elements * cost / vector rate)
    memory  = (weights + what of the activations does not fit the on-chip memory) / bandwidth
    """
    workload, device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (workload, device))
    matrix_s = _product_time(workload, device, pair, calculus)
    vector_s = _vector_time(workload, device, pair, calculus)
    compute_s = calculus.largest(matrix_s, vector_s)

    weight_bytes = _weight_bytes(workload, device, pair)
    stored_bytes = workload.weight_elements * pair.weight_bits / 8 + workload.bias_elements * 4
    activation_bytes = (workload.in_elements + workload.out_elements) * pair.activation_bits / 8
    spilled_bytes = calculus.largest(activation_bytes - device.vtcm_bytes, 0 * activation_bytes)
    traffic_bytes = weight_bytes + spilled_bytes
    memory_s = traffic_bytes / (device.dram_bytes_per_s * device.dram_efficiency)

    longer = calculus.largest(compute_s, memory_s)
    shared = (1 - device.overlap) * (compute_s + memory_s - longer)
    latency_s = longer + shared + device.dispatch_s
    on_cpu = _mask(op in device.cpu for op in workload.ops)
    elements = workload.in_elements + workload.out_elements
    cpu_s = 2 * device.crossing_s + elements / device.cpu_per_s
    macs = workload.dims.macs
    energy_j = (
        macs * device.energy_j.get(pair.name, 0.0)
        + traffic_bytes * device.energy_j.get("dram_byte", 0.0)
        + activation_bytes * device.energy_j.get("vtcm_byte", 0.0)
    )
    return Costs(
        compute_s=compute_s,
        memory_s=memory_s,
        latency_s=jnp.where(on_cpu, cpu_s, latency_s),
        weight_bytes=stored_bytes,
        traffic_bytes=traffic_bytes,
        vtcm_bytes=jnp.minimum(activation_bytes + weight_bytes, device.vtcm_bytes),
        macs=macs,
        bitops=macs * pair.weight_bits * pair.activation_bits,
        energy_j=energy_j,
    )


def legal_groups(workload: Workload, device: Device, pair: Pair) -> np.ndarray:
    """Which groups may run in `pair`: a rule for the operator, or any pair of the device."""
    rules = dict(device.legal)
    known = {p.name for p in device.pairs}
    return np.array([pair.name in rules.get(op, known) for op in workload.ops], bool)


def _product_time(
    workload: Workload, device: Device, pair: Pair, calculus: Calculus
) -> Float[Array, " groups"]:
    """Padded multiply-accumulates over the rate of the pair; 0 where there is no product."""
    d, up, g = workload.dims, calculus.round_up, device.granules
    pixels = d.count * up(d.height, _like(d.height, g["height"]))
    pixels = pixels * up(d.width, _like(d.width, g["width"]))
    taps = d.kernel_height * d.kernel_width
    inner = up(d.in_channels, _like(d.in_channels, g["in_channels"]))
    outer = up(d.out_channels, _like(d.out_channels, g["out_channels"]))
    dense_s = pixels * d.groups * inner * outer * taps / device.macs_per_s[pair.name]
    channels = up(d.groups * d.out_channels, _like(d.groups, g["vector"]))
    depthwise_s = pixels * channels * taps / device.depthwise_macs_per_s[pair.name]
    depthwise = _mask(kind == "depthwise" for kind in workload.kinds)
    product = _mask(kind in ("conv", "dense", "matmul") for kind in workload.kinds)
    return jnp.where(depthwise, depthwise_s, jnp.where(product, dense_s, 0.0))


def _vector_time(
    workload: Workload, device: Device, pair: Pair, calculus: Calculus
) -> Float[Array, " groups"]:
    """Passes over the result on the vector unit: own ones, and fused ones that are not free."""
    d, g = workload.dims, device.granules
    channels = d.groups * d.out_channels
    elements = d.pixels * calculus.round_up(channels, _like(channels, g["vector"]))
    costs = jnp.stack([jnp.asarray(device.vector_cost[kind]) for kind in VECTOR_WORK])
    passes = workload.passes + np.asarray(
        [
            [sum(w == kind and op not in device.fused for op, w in tail) for kind in VECTOR_WORK]
            for tail in workload.tails
        ],
        np.float32,
    ).reshape(-1, len(VECTOR_WORK))
    return elements * (passes @ costs) / device.vector_per_s[pair.activation]


def _weight_bytes(workload: Workload, device: Device, pair: Pair) -> Float[Array, " groups"]:
    """Bytes of weights and biases that move; under 8 bits only where the device says so."""
    bits = jnp.where(_narrow(workload, device.narrow), pair.weight_bits, max(pair.weight_bits, 8))
    return workload.weight_elements * bits / 8 + workload.bias_elements * 4


def _narrow(workload: Workload, rule: NarrowWeights) -> Array:
    d = workload.dims
    kinds = _mask(kind in rule.kinds for kind in workload.kinds)
    kernel = jnp.maximum(d.kernel_height, d.kernel_width) <= rule.kernel
    stride = jnp.maximum(d.stride_height, d.stride_width) <= rule.stride
    channels = d.groups * d.out_channels > rule.above_out_channels
    return kinds & kernel & stride & channels


def _like(x: Float[Array, " groups"], value: Leaf) -> Float[Array, " groups"]:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), jnp.shape(x))


def _mask(flags: Iterable[bool]) -> np.ndarray:
    return np.array(list(flags), bool)
