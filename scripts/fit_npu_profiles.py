#!/usr/bin/env python3
"""Fits the Hexagon profiles to public latencies and writes them.

fit_npu_profiles.py [--latencies CSV] [--graphs DIR] [--out DIR]

Structural numbers are shared by all devices and go to _hexagon.toml; each profile holds its own
rates, bandwidth and overheads, and the error band of networks left out of the fit.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_npu import DATA, LEFT_OUT

from jqnt import npu
from jqnt.errors import JqntError
from jqnt.npu.fit_device import Fitted, Measurement, fit_devices
from jqnt.npu.knobs import HEXAGON
from jqnt.npu.latencies import measurements_of, read_graphs, read_latencies

FOLDER = Path(npu.__file__).parent / "devices"
FIT = "fitted"
SOC = "LiteRT soc_table.cc"
SIBLING = "LiteRT soc_table.cc, the sibling chip"
PROFILES = {
    "QCS8450 (Proxy)": ("snapdragon-8-gen-1", "Snapdragon 8 Gen 1 class (QCS8450, Hexagon V69)",
                        8, SIBLING),
    "QCS8550 (Proxy)": ("snapdragon-8-gen-2", "Snapdragon 8 Gen 2 class (QCS8550, Hexagon V73)",
                        8, SIBLING),
    "Samsung Galaxy S24": ("snapdragon-8-gen-3", "Snapdragon 8 Gen 3 (SM8650, Hexagon V75)",
                           8, SOC),
    "Samsung Galaxy S25": ("snapdragon-8-elite", "Snapdragon 8 Elite (SM8750, Hexagon V79)",
                           8, SOC),
    "Snapdragon 8 Elite Gen 5 QRD": ("snapdragon-8-elite-gen-5",
                                     "Snapdragon 8 Elite Gen 5 (SM8850, Hexagon V81)", 8, SOC),
    "Dragonwing RB3 Gen 2 Vision Kit": ("qcs6490", "QCS6490 (Hexagon V68)", 2,
                                        "unchecked: 2 MB as commonly reported"),
    "QCS8275 (Proxy)": ("qcs8275", "QCS8275 (Hexagon V75)", 8, SOC),
    "Dragonwing IQ-9075 EVK": ("qcs9075", "QCS9075 (Hexagon V73)", 8, SOC),
}  # fmt: skip
RELATED = {
    "snapdragon-x-elite": ("QCS8550 (Proxy)", 135.0 / 67.2, 8,
                           "Snapdragon X Elite (SC8380XP, Hexagon V73): not measured; the fitted "
                           "8 Gen 2 of the same generation, bandwidth by bus width and clock"),
    "sa8295p": ("Dragonwing RB3 Gen 2 Vision Kit", 68.3 / 25.6, 8,
                "SA8295P (Hexagon V68): not measured; the fitted QCS6490 of the same generation, "
                "bandwidth by bus width and clock"),
}  # fmt: skip
"""Profile -> (fitted device of the same generation, ratio of peak bandwidths, on-chip MB, what)."""

SHARED = (
    "grouped_cost", "fill_pixels", "prefetch", "overlap", "dram_efficiency", "crossing_s",
    "cpu_per_s",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latencies", type=Path, default=DATA / "npu" / "dev_latencies.csv")
    parser.add_argument("--graphs", type=Path, default=DATA / "npu" / "graphs")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    try:
        fitted, measured = fit(args.latencies, args.graphs)
    except JqntError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(fitted, measured, args.out)
    print(f"{len(measured)} measurements, loss {fitted.loss:.1f}, profiles in {args.out}")
    return 0


def fit(latencies: Path, graphs: Path) -> tuple[Fitted, list[Measurement]]:
    """All devices of the table at once."""
    rows = read_latencies(latencies, without=LEFT_OUT)
    workloads = read_graphs(graphs, {r.model for r in rows})
    measured = [m for _, m in measurements_of(rows, workloads)]
    start = npu.device("generic-hexagon")
    devices = {name: replace(start, name=name) for name in sorted({m.device for m in measured})}
    return fit_devices(devices, measured, HEXAGON), measured


def write(fitted: Fitted, measured: Sequence[Measurement], folder: Path) -> None:
    """_hexagon.toml and a profile per device; devices without float measurements have no float."""
    floats = {m.device for m in measured if m.pair == "float16"}
    devices = fitted.devices
    median = npu.device("generic-hexagon")
    first = next(iter(devices.values()))
    note = f"fitted to {len(measured)} public latencies"
    scalars = {
        key: (float(getattr(first, key)), _moved(median, first, key, note)) for key in SHARED
    }
    costs = {
        key: (float(value), _moved_entry(median.vector_cost[key], value, key, note))
        for key, value in first.vector_cost.items()
    }
    sources = npu.devices.sources("generic-hexagon")
    granules = {
        key: (float(value), note if key == "image" else sources[f"granules.{key}"])
        for key, value in first.granules.items()
    }
    text = _HEAD + _entries(scalars) + "\n[vector_cost]\n" + _entries(costs)
    (folder / "_hexagon.toml").write_text(text + "\n[granules]\n" + _entries(granules) + _NARROW)
    for name, (profile, what, megabytes, source) in PROFILES.items():
        if name in devices:
            text = _profile(devices[name], profile, what, (megabytes, source), 1.0, note)
            text = text if name in floats else _without_float(text)
            (folder / f"{profile}.toml").write_text(text)
    for profile, (name, ratio, megabytes, what) in RELATED.items():
        if name in devices:
            taken = f"taken from {PROFILES[name][0]}, not measured"
            wide = replace(devices[name], relative_error=2 * devices[name].relative_error)
            text = _profile(wide, profile, what, (megabytes, SOC), ratio, taken)
            text = text if name in floats else _without_float(text)
            (folder / f"{profile}.toml").write_text(text)


_HEAD = """# What the Hexagon tensor processors share. Written by scripts/fit_npu_profiles.py.
base = "_flat"
pairs = ["w8a8", "w4a8", "w8a16", "w4a16", "float16"]
fused = [
  "BatchNormalization", "Bias", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu",
]
# no operators of QNN's HTP, nor of onnxruntime's QNN execution provider up to 2.7
cpu = [
  "Bernoulli", "Compress", "Det", "EyeLike", "Loop", "Multinomial", "RandomNormal",
  "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan", "StringNormalizer",
  "TfIdfVectorizer", "Unique",
]

"""
_BAND = "80 % of the errors on models left out of the fit lie within"
_NARROW = """
[narrow_weights] # Qualcomm HTP guidelines, INT4 encodings for weights
kinds = ["conv", "dense"]
kernel = 1
stride = 1
above_out_channels = 32

[energy_j]
w8a8 = { value = 0.3e-12, source = "Horowitz, ISSCC 2014, 45 nm: 8-bit product, 32-bit sum" }
w4a8 = { value = 0.3e-12, source = "as w8a8: the array is that of 8 bits" }
w8a16 = { value = 0.5e-12, source = "Horowitz, ISSCC 2014, 45 nm: two products, 32-bit sum" }
w4a16 = { value = 0.5e-12, source = "as w8a16: the array is that of 8 bits" }
float16 = { value = 1.5e-12, source = "Horowitz, ISSCC 2014, 45 nm: half product and sum" }
vtcm_byte = { value = 12.5e-12, source = "Horowitz, ISSCC 2014, 45 nm: 1 MB, 100 pJ per 64 bit" }
dram_byte = { value = 162e-12, source = "Horowitz, ISSCC 2014: 1.3 nJ per 64 bit, the low end" }

[modes.burst]
engines = { value = 1.0, source = "public latencies are measured in it" }
memory = { value = 1.0, source = "public latencies are measured in it" }
[modes.high_performance]
engines = { value = 0.85, source = "assumed: one voltage corner below" }
memory = { value = 0.95, source = "assumed" }
[modes.balanced]
engines = { value = 0.65, source = "assumed: two corners below" }
memory = { value = 0.8, source = "assumed" }
[modes.low_balanced]
engines = { value = 0.5, source = "assumed: three corners below" }
memory = { value = 0.65, source = "assumed" }
[modes.power_saver]
engines = { value = 0.35, source = "assumed: four corners below" }
memory = { value = 0.5, source = "assumed" }
"""


def _profile(
    device: npu.Device, name: str, what: str, chip: tuple[int, str], ratio: float, note: str
) -> str:
    four = "as w8: Qualcomm HTP guidelines, int4 only moves fewer bytes"
    head = f'# {what}.\nbase = "_hexagon"\nname = "{name}"\ndescription = "{what}"\n\n'
    scalars = {
        "dram_bytes_per_s": (device.dram_bytes_per_s * ratio, f"{note}, effective"),
        "vtcm_bytes": (float(chip[0] * 2**20), chip[1]),
        "vtcm_bytes_per_s": (device.vtcm_bytes_per_s, note),
        "dispatch_s": (device.dispatch_s, note),
        "serial_s": (device.serial_s, note),
        "graph_s": (device.graph_s, note),
        "relative_error": (device.relative_error, _BAND if device.relative_error else "unknown"),
    }
    text = head + _entries(scalars)
    for table in ("macs_per_s", "depthwise_macs_per_s", "vector_per_s"):
        entries = {
            key: (value, four if key.startswith("w4") else note)
            for key, value in getattr(device, table).items()
        }
        text += f"\n[{table}]\n" + _entries(entries)
    return text


def _without_float(text: str) -> str:
    """A profile whose pairs are integers only."""
    pairs = 'pairs = ["w8a8", "w4a8", "w8a16", "w4a16"]\n'
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("float16")]
    return "".join(lines).replace('base = "_hexagon"\n', f'base = "_hexagon"\n{pairs}', 1)


def _entries(entries: dict[str, tuple[float, str]]) -> str:
    lines = []
    for key, (given, source) in entries.items():
        value = float(given)
        name = key if key.replace("_", "").isalnum() else f'"{key}"'
        number = str(int(value)) if value == int(value) < 2**24 else f"{value:.4g}"
        lines.append(f'{name} = {{ value = {number}, source = "{source}" }}\n')
    return "".join(lines)


def _moved(start: npu.Device, found: npu.Device, key: str, note: str) -> str:
    source = npu.devices.sources("generic-hexagon").get(key, "assumed")
    return _moved_entry(getattr(start, key), getattr(found, key), "", note) or source


def _moved_entry(start: float, found: float, key: str, note: str) -> str:
    """The note where fitting has changed the number, else the number's own source."""
    if not np.isclose(float(start), float(found), rtol=1e-4):
        return note
    return npu.devices.sources("generic-hexagon")[f"vector_cost.{key}"] if key else ""


if __name__ == "__main__":
    sys.exit(main())
