"""What a prediction suggests to do: fallbacks, layouts, formats that do not pay, shortages."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jqnt.encodings import Encodings
from jqnt.npu.assignment import assignment_of
from jqnt.npu.cost import group_costs, with_blocks
from jqnt.npu.devices import Device
from jqnt.npu.layers import LayerCost, layer_costs
from jqnt.npu.pairs import Pair
from jqnt.npu.workload import Workload

__all__ = ["Advice", "advise", "losing_groups", "peak_memory_bytes"]

_REPLACEMENTS = {
    "Erf": "write GELU as x * sigmoid(1.702 x), or let the exporter keep Gelu",
    "LayerNormalization": "replace by batch normalization where training allows it",
    "TopK": "do the selection outside the network",
    "ArgMax": "do the selection outside the network",
    "GatherND": "use Gather along one axis",
    "ScatterND": "write the result through Concat",
}


@dataclass(frozen=True)
class Advice:
    """One suggestion: what was found, at which groups, how many seconds it costs, what to do."""

    topic: str
    groups: tuple[str, ...]
    seconds: float
    text: str


def advise(
    workload: Workload, choice: Encodings | Mapping[str, str | Pair] | str | Pair, device: Device
) -> tuple[Advice, ...]:
    """The suggestions for a plan, dearest first."""
    rows = layer_costs(workload, choice, device)
    total = float(device.graph_s) + sum(row.latency_s for row in rows)
    found = [
        *_fallbacks(rows),
        *_layouts(workload, choice, device),
        *_divisions(rows),
        *_affine(rows),
        *_narrow(workload, choice, device, rows),
        *_spills(workload, device, rows),
        *_shapes(workload, rows, total),
        *_losers(workload, choice, device, rows),
    ]
    return tuple(sorted(found, key=lambda a: -a.seconds))


def losing_groups(
    workload: Workload, choice: Encodings | Mapping[str, str | Pair] | str | Pair, device: Device
) -> tuple[tuple[str, float], ...]:
    """(group, seconds lost) where the plan's integers are slower than the device's float."""
    floats = [pair for pair in device.pairs if pair.floating]
    if not floats:
        return ()
    workload = with_blocks(workload, device)
    columns = assignment_of(workload, choice, device)
    tables = [np.asarray(group_costs(workload, device, pair).latency_s) for pair in device.pairs]
    best = np.min([tables[device.pairs.index(pair)] for pair in floats], axis=0)
    own = np.array([tables[column][g] for g, column in enumerate(columns)])
    lost = own - best
    return tuple(
        (workload.groups[g], float(lost[g]))
        for g in np.argsort(-lost)
        if lost[g] > 1e-3 * own[g] and not device.pairs[columns[g]].floating
    )


def peak_memory_bytes(workload: Workload, activation_bits: int, weight_bits: int) -> float:
    """Weights, and the activations that are alive at the fullest moment."""
    live = float(np.max(np.asarray(workload.live_elements), initial=0.0))
    weights = float(np.sum(np.asarray(workload.weight_elements)))
    biases = float(np.sum(np.asarray(workload.bias_elements)))
    return live * activation_bits / 8 + weights * weight_bits / 8 + 4 * biases


def _fallbacks(rows: tuple[LayerCost, ...]) -> list[Advice]:
    found: dict[str, list[LayerCost]] = {}
    for row in rows:
        if row.bottleneck == "cpu":
            found.setdefault(row.op, []).append(row)
    return [
        Advice(
            "fallback",
            tuple(row.name for row in group),
            sum(row.latency_s for row in group),
            f"{op} runs on the CPU: {_REPLACEMENTS.get(op, 'use an operator the NPU has')}",
        )
        for op, group in found.items()
    ]


def _layouts(workload: Workload, choice, device: Device) -> list[Advice]:
    """Channels-first inputs and outputs are transposed at the graph's edge."""
    elements = np.asarray(workload.layout_elements)
    columns = assignment_of(workload, choice, device)
    seconds = 0.0
    for g in np.flatnonzero(elements):
        form = device.pairs[columns[g]].activation
        seconds += float(elements[g] * device.cost_of("move", form) / device.vector_per_s[form])
    names = tuple(workload.groups[g] for g in np.flatnonzero(elements))
    if not names:
        return []
    text = "inputs or outputs are channels-first (NCHW) and are transposed; feed and read NHWC"
    return [Advice("layout", names, seconds, text)]


def _divisions(rows: tuple[LayerCost, ...]) -> list[Advice]:
    hit = [row for row in rows if row.op == "Div"]
    if not hit:
        return []
    text = "true divisions by a tensor are slow; multiply by the reciprocal, or fold the "
    text += "normalization of the input into the first convolution"
    return [Advice("division", tuple(r.name for r in hit), sum(r.latency_s for r in hit), text)]


def _affine(rows: tuple[LayerCost, ...]) -> list[Advice]:
    hit = [r for r in rows if r.op == "BatchNormalization" and "float" not in r.pair]
    if not hit:
        return []
    text = "batch normalizations that no convolution takes up are converted to float and back"
    return [Advice("affine", tuple(r.name for r in hit), sum(r.latency_s for r in hit), text)]


def _narrow(workload: Workload, choice, device: Device, rows) -> list[Advice]:
    """Weights of under 8 bits that save nothing."""
    eight = {
        pair: other
        for pair in device.pairs
        for other in device.pairs
        if pair.weight_bits < 8 == other.weight_bits and pair.activation == other.activation
    }
    columns = assignment_of(workload, choice, device)
    wide = {
        pair: np.asarray(group_costs(with_blocks(workload, device), device, other).latency_s)
        for pair, other in eight.items()
    }
    useless = [
        rows[g].name
        for g, column in enumerate(columns)
        if (pair := device.pairs[column]) in wide
        and rows[g].weight
        and rows[g].latency_s >= float(wide[pair][g]) * (1 - 1e-6)
    ]
    if not useless:
        return []
    text = "weights of under 8 bits bring no time here; 8 bits cost nothing and keep accuracy"
    return [Advice("narrow", tuple(useless), 0.0, text)]


def _spills(workload: Workload, device: Device, rows) -> list[Advice]:
    hit = [r for r in rows if r.vtcm_bytes >= float(device.vtcm_bytes) * (1 - 1e-6)]
    if not hit:
        return []
    text = f"tensors exceed the {float(device.vtcm_bytes) / 2**20:.3g} MB of on-chip memory; "
    text += "fewer channels or smaller images there avoid the way through DRAM"
    return [Advice("spill", tuple(r.name for r in hit), sum(r.memory_s for r in hit), text)]


def _shapes(workload: Workload, rows, total: float) -> list[Advice]:
    """Products that take time and fill little of the tiles they occupy."""
    channels = np.asarray(workload.dims.groups * workload.dims.out_channels)
    inner = np.asarray(workload.dims.in_channels)
    hit = [
        row
        for g, row in enumerate(rows)
        if row.macs and row.bottleneck == "compute" and row.latency_s > 0.02 * total
        and row.utilization < 0.1 and min(channels[g], inner[g]) < 32
    ]  # fmt: skip
    if not hit:
        return []
    text = "few channels leave most of the array idle; multiples of 32 fill it (space-to-depth "
    text += "for shallow inputs)"
    return [Advice("shape", tuple(r.name for r in hit), sum(r.latency_s for r in hit), text)]


def _losers(workload: Workload, choice, device: Device, rows) -> list[Advice]:
    lost = losing_groups(workload, choice, device)
    if not lost:
        return []
    text = "integers are slower than float here; leave these operators in float"
    return [Advice("loser", tuple(name for name, _ in lost), sum(s for _, s in lost), text)]
