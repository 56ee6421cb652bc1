"""A measured profile beside the prediction: joined to the fusion groups by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jqnt.encodings import Encodings
from jqnt.errors import DataError
from jqnt.npu.devices import Device
from jqnt.npu.fit_device import Measurement
from jqnt.npu.layers import layer_costs
from jqnt.npu.pairs import Pair
from jqnt.npu.profiles import NodeTime, Profile
from jqnt.npu.workload import Workload

__all__ = ["Comparison", "MeasuredGroup", "compare_profile", "measurements_in"]


@dataclass(frozen=True)
class MeasuredGroup:
    """A fusion group with its predicted and measured seconds; `nodes` are the profile's names."""

    name: str
    op: str
    pair: str
    predicted_s: float
    measured_s: float
    on_cpu: bool
    nodes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s if self.measured_s else float("inf")


@dataclass(frozen=True)
class Comparison:
    """Joined groups in order of execution, what of the profile no group claims, groups without a
    time (fused by the device, or run elsewhere), and the groups that ran on the CPU."""

    groups: tuple[MeasuredGroup, ...]
    unmatched: tuple[NodeTime, ...]
    missing: tuple[str, ...]
    fallbacks: tuple[str, ...]
    predicted_s: float
    measured_s: float


def compare_profile(
    profile: Profile,
    workload: Workload,
    choice: Encodings | Mapping[str, str | Pair] | str | Pair,
    device: Device,
) -> Comparison:
    """Joins by ONNX source names where the profile has them, else by names without punctuation.

    Converters turn "/net/conv/Conv" into "_net_conv_Conv" and append "_token_3" and the like; a
    node belongs to the group that has the longest matching name of a node or output tensor.
    Raises DataError if nothing matches: the profile is of another model.
    """
    if all(np.isnan(node.seconds) for node in profile.nodes):
        raise DataError(
            "the profile has cycles but no 'Accelerator (execute) time' in microseconds beside "
            "their total, so cycles have no length"
        )
    known = _names(workload)
    taken: dict[int, list[NodeTime]] = {}
    unmatched = []
    for node in profile.nodes:
        found = [_find(name, known) for name in (*node.sources, node.name)]
        index = next((i for i in found if i is not None), None)
        if index is None:
            unmatched.append(node)
        else:
            taken.setdefault(index, []).append(node)
    if not taken:
        some = ", ".join(repr(node.name) for node in profile.nodes[:3])
        raise DataError(
            f"no node of the profile ({some}, ...) is named like one of {workload.name!r}"
        )
    rows = layer_costs(workload, choice, device)
    groups = tuple(
        MeasuredGroup(
            name=rows[i].name,
            op=rows[i].op,
            pair=rows[i].pair,
            predicted_s=rows[i].latency_s,
            measured_s=float(np.nansum([node.seconds for node in taken[i]])),
            on_cpu=any(node.on_cpu for node in taken[i]),
            nodes=tuple(node.name for node in taken[i]),
        )
        for i in sorted(taken)
    )
    missing = tuple(row.name for i, row in enumerate(rows) if i not in taken)
    return Comparison(
        groups=groups,
        unmatched=tuple(unmatched),
        missing=missing,
        fallbacks=tuple(group.name for group in groups if group.on_cpu),
        predicted_s=float(sum(row.latency_s for row in rows) + float(device.graph_s)),
        measured_s=_total(profile),
    )


def measurements_in(comparison: Comparison, workload: Workload) -> list[Measurement]:
    """The joined groups as measurements for `fit_device`."""
    return [
        Measurement(workload, group.pair, group.measured_s, group=group.name)
        for group in comparison.groups
        if group.measured_s > 0
    ]


def _names(workload: Workload) -> dict[str, int]:
    """Plain name of a node or output tensor -> its group; earlier groups win."""
    known: dict[str, int] = {}
    for index in range(len(workload.groups)):
        for name in (*workload.nodes[index], workload.outputs[index]):
            known.setdefault(_plain(name), index)
    return known


def _find(name: str, known: Mapping[str, int]) -> int | None:
    plain = _plain(name)
    if plain in known:
        return known[plain]
    inside = [k for k in known if k and (plain.startswith(k + "_") or plain.endswith("_" + k))]
    return known[max(inside, key=len)] if inside else None


def _plain(name: str) -> str:
    """Lower case, runs of punctuation as one underscore, without the converters' suffixes."""
    name = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    return re.sub(r"(_(token|coll_out|converted_\w+?|quantized|dequantized)(_\d+)*)+$", "", name)


def _total(profile: Profile) -> float:
    for key in ("accelerator", "qnn_accelerator", "nodes"):
        if key in profile.totals_s:
            return float(profile.totals_s[key])
    return float(np.nansum([node.seconds for node in profile.nodes]))
