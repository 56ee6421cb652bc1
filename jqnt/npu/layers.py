"""A plan's latency layer by layer, with what bounds each layer: for tables and reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jqnt.encodings import Encodings
from jqnt.npu.cost import group_costs
from jqnt.npu.devices import Device
from jqnt.npu.pairs import Pair
from jqnt.npu.tables import assignment_of
from jqnt.npu.workload import Workload

__all__ = ["Bottleneck", "LayerCost", "layer_costs"]

Bottleneck = Literal["compute", "memory", "dispatch", "cpu"]


@dataclass(frozen=True)
class LayerCost:
    """One fusion group under a plan; its name is its main node's, `pair` its number formats.

    `weight` and `output` name tensors ("" without a weight). `bottleneck` is the longest of
    compute, memory and dispatch, or "cpu" for an operator that the device does not run.
    `intensity` is multiply-accumulates per byte moved.
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
        op = workload.ops[index]
        return LayerCost(
            name=workload.groups[index],
            op=op,
            pair=device.pairs[columns[index]].name,
            weight=workload.weights[index],
            output=workload.outputs[index],
            latency_s=cost.latency_s,
            compute_s=cost.compute_s,
            memory_s=cost.memory_s,
            bottleneck=_bottleneck(op, cost.compute_s, cost.memory_s, device),
            macs=cost.macs,
            weight_bytes=cost.weight_bytes,
            traffic_bytes=cost.traffic_bytes,
            vtcm_bytes=cost.vtcm_bytes,
        )

    return tuple(row(index) for index in range(len(workload.groups)))


def _bottleneck(op: str, compute_s: float, memory_s: float, device: Device) -> Bottleneck:
    if op in device.cpu:
        return "cpu"
    if max(compute_s, memory_s) < float(device.dispatch_s):
        return "dispatch"
    return "compute" if compute_s >= memory_s else "memory"
