"""A plan's latency layer by layer, with what bounds each layer: for tables and reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jqnt.encodings import Encodings
from jqnt.npu.assignment import assignment_of
from jqnt.npu.cost import Costs, group_costs
from jqnt.npu.devices import Device
from jqnt.npu.pairs import Pair
from jqnt.npu.workload import Workload

__all__ = ["Bottleneck", "LayerCost", "layer_costs"]

Bottleneck = Literal["compute", "memory", "dispatch", "cpu"]


@dataclass(frozen=True)
class LayerCost:
    """One fusion group under a plan; its name is its main node's, `pair` its number formats.

    `weight` and `output` name tensors ("" without a weight). `bottleneck` is the longest of
    compute, memory and dispatch, or "cpu" for an operator that the device does not run.
    `compute_s` is the longer of `matrix_s` (products) and `vector_s` (all else), `memory_s` what
    prefetching leaves of the DRAM time, of which it hides `hidden_s`. `intensity` is
    multiply-accumulates per byte moved; beyond `ridge` the rate bounds it, not the bandwidth.
    `utilization` is the share of the peak rate of `pair` that the group reaches, `vtcm_use` that
    of the on-chip memory which it fills. `energy_j` is None where the profile has no energies.
    """

    name: str
    op: str
    pair: str
    weight: str
    output: str
    latency_s: float
    compute_s: float
    memory_s: float
    bottleneck: Bottleneck
    macs: float
    weight_bytes: float
    traffic_bytes: float
    vtcm_bytes: float
    matrix_s: float
    vector_s: float
    hidden_s: float
    overhead_s: float
    energy_j: float | None
    ridge: float
    utilization: float
    vtcm_use: float

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte of traffic; 0 without traffic."""
        return self.macs / self.traffic_bytes if self.traffic_bytes else 0.0


def layer_costs(
    workload: Workload, choice: Encodings | Mapping[str, str | Pair] | str | Pair, device: Device
) -> tuple[LayerCost, ...]:
    """The groups in order of execution; their latencies and `graph_s` sum to `latency`.

    `choice` as in `latency`. Raises ConfigError for a pair that the device does not have.
    """
    columns = assignment_of(workload, choice, device)
    tables = {c: jax.device_get(group_costs(workload, device, device.pairs[c])) for c in {*columns}}

    def row(index: int) -> LayerCost:
        cost = jax.tree.map(lambda x: float(np.asarray(x)[index]), tables[columns[index]])
        op, pair = workload.ops[index], device.pairs[columns[index]]
        rate = float(device.macs_per_s[pair.name])
        bandwidth = float(device.dram_bytes_per_s) * float(device.dram_efficiency)
        return LayerCost(
            name=workload.groups[index],
            op=op,
            pair=pair.name,
            weight=workload.weights[index],
            output=workload.outputs[index],
            latency_s=cost.latency_s,
            compute_s=cost.compute_s,
            memory_s=cost.memory_s,
            bottleneck=_bottleneck(op, cost, device),
            macs=cost.macs,
            weight_bytes=cost.weight_bytes,
            traffic_bytes=cost.traffic_bytes,
            vtcm_bytes=cost.vtcm_bytes,
            matrix_s=cost.matrix_s,
            vector_s=cost.vector_s,
            hidden_s=cost.hidden_s,
            overhead_s=cost.overhead_s,
            energy_j=cost.energy_j if device.energy_j else None,
            ridge=rate / bandwidth,
            utilization=cost.macs / (rate * cost.latency_s) if cost.latency_s else 0.0,
            vtcm_use=cost.vtcm_bytes / float(device.vtcm_bytes) if device.vtcm_bytes else 0.0,
        )

    return tuple(row(index) for index in range(len(workload.groups)))


def _bottleneck(op: str, cost: Costs, device: Device) -> Bottleneck:
    if op in device.cpu:
        return "cpu"
    if max(cost.compute_s, cost.memory_s) < cost.overhead_s:
        return "dispatch"
    return "compute" if cost.compute_s >= cost.memory_s else "memory"
