"""`jqnt profile`: predicted latency layer by layer, beside a measured one if there is one."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jqnt import npu
from jqnt.cli.console import emit
from jqnt.cli.options import AsJson, Device, FrozenPath
from jqnt.encodings import Encodings
from jqnt.errors import ConfigError
from jqnt.frozen import load_frozen
from jqnt.npu import Workload, latency, latency_range, tables, workload
from jqnt.npu import device as load_device
from jqnt.npu.advice import advise, peak_memory_bytes
from jqnt.npu.assignment import assignment_of
from jqnt.npu.conversions import conversion_latency
from jqnt.npu.design import elasticities, with_numbers
from jqnt.npu.elements import PLAN
from jqnt.npu.knobs import paths_of
from jqnt.npu.layers import layer_costs
from jqnt.npu.measured import Comparison, compare_profile
from jqnt.npu.modes import in_mode
from jqnt.npu.profiles import read_profile
from jqnt.report import profile_table, table_of
from jqnt.report.roofline import roofline_figure, save_figure
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn

__all__ = ["profile"]


def profile(
    model: FrozenPath,
    device: Device,
    pair: Annotated[
        str | None,
        typer.Option(
            help="formats of all layers, such as w8a8 or float16; by default those of the "
            "encodings, or the device's first",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="samples at once")] = 1,
    top: Annotated[
        int, typer.Option(help="show so many layers, slowest first; 0: all, in order")
    ] = 20,
    mode: Annotated[
        str | None,
        typer.Option(help="performance mode of the device, such as balanced", show_default=False),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            help="another number of the device, such as vtcm_bytes=10485760, and what it buys",
            metavar="NAME=VALUE",
            show_default=False,
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="a QNN profile (CSV or text) to compare with", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="write a roofline plot (.svg, .png)", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Predict a model's latency on a device, layer by layer."""
    target = load_device(device)
    if mode is not None:
        target = in_mode(target, mode)
    frozen = load_frozen(model)
    graph, params = fold_bn(*cleanup(frozen.graph, frozen.params))
    work = workload(graph, params, batch)
    choice: str | Encodings = pair or (frozen.encodings or target.pairs[0].name)
    rows = layer_costs(work, choice, target)
    total = float(latency(work, choice, target, PLAN))
    fastest, slowest = (float(bound) for bound in latency_range(tables(work, target)))
    layers = [
        {**asdict(row), "intensity": row.intensity, "share": row.latency_s / total} for row in rows
    ]
    document = {
        "model": str(model),
        "device": target.name,
        "latency_s": total,
        "fastest_legal_s": fastest,
        "slowest_legal_s": slowest,
        "relative_error": float(target.relative_error) or None,
        "energy_j": sum(row.energy_j or 0.0 for row in rows) if target.energy_j else None,
        "size_bytes": sum(row.weight_bytes for row in rows),
        "peak_memory_bytes": _peak(work, choice, target),
        "conversions_s": float(conversion_latency(work, choice, target)),
        "layers": layers,
        "advice": [asdict(advice) for advice in advise(work, choice, target)],
    }
    shown = sorted(layers, key=lambda row: -row["latency_s"])[:top] if top else layers
    band = f" ± {100 * target.relative_error:.0f} %" if target.relative_error else ""
    title = (
        f"{frozen.graph.name} on {target.name}: {1e3 * total:.4g} ms{band} "
        f"(fastest legal plan {1e3 * fastest:.4g} ms, slowest {1e3 * slowest:.4g} ms), peak memory "
        f"{document['peak_memory_bytes'] / 2**20:.3g} MB"
    )
    tables_shown = [profile_table(shown, title)]
    if what_if:
        document["what_if"] = _what_if(work, choice, target, what_if)
        tables_shown.append(_what_if_table(document["what_if"]))
    if document["advice"]:
        tables_shown.append(_advice_table(document["advice"]))
    if measured is not None:
        compared = compare_profile(read_profile(measured), work, choice, target)
        document["measured"] = _measured(compared)
        tables_shown.append(_measured_table(document["measured"]))
    if plot is not None:
        save_figure(roofline_figure(rows, target), plot)
    emit(document, tables_shown, json)


def _what_if(work: Workload, choice: Any, target: npu.Device, changes: list[str]) -> dict[str, Any]:
    """The latency with other numbers, and what the plan's latency hangs on."""
    numbers = {}
    for change in changes:
        name, _, value = change.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ConfigError(f"--what-if {change}: expected NAME=VALUE with a number") from None
    before = {name: float(value) for name, value in paths_of(target).items() if name in numbers}
    changed = with_numbers(target, numbers)
    return {
        "numbers": {name: [before[name], value] for name, value in numbers.items()},
        "latency_s": float(latency(work, choice, changed, PLAN)),
        "was_s": float(latency(work, choice, target, PLAN)),
        "elasticities": elasticities(work, choice, target),
    }


def _what_if_table(found: dict[str, Any]) -> Table:
    listed = ", ".join(f"{k} {a:.4g} -> {b:.4g}" for k, (a, b) in found["numbers"].items())
    change = 100 * (found["latency_s"] / found["was_s"] - 1)
    title = f"With {listed}: {1e3 * found['latency_s']:.4g} ms ({change:+.2f} %)"
    rows = [{"name": name, "slope": value} for name, value in found["elasticities"].items()]
    columns = {"name": "number of the device", "slope": "% of latency per % of it"}
    return table_of(title, columns, rows[:10])


def _peak(work: Workload, choice: Any, target: npu.Device) -> float:
    """At the widest formats of the plan."""
    used = [target.pairs[column] for column in assignment_of(work, choice, target)]
    bits = max(pair.activation_bits for pair in used), max(pair.weight_bits for pair in used)
    return peak_memory_bytes(work, *bits)


def _advice_table(advice: list[dict[str, Any]]) -> Table:
    rows = [
        {**a, "us": 1e6 * a["seconds"], "count": len(a["groups"]), "first": a["groups"][0]}
        for a in advice
    ]
    columns = {"us": "us", "count": "layers", "first": "such as", "text": "advice"}
    return table_of("Advice", columns, rows)


def _measured(compared: Comparison) -> dict[str, Any]:
    return {
        "predicted_s": compared.predicted_s,
        "measured_s": compared.measured_s,
        "layers": [asdict(group) for group in compared.groups],
        "unmatched": [node.name for node in compared.unmatched],
        "missing": list(compared.missing),
        "fallbacks": list(compared.fallbacks),
    }


def _measured_table(found: dict[str, Any]) -> Table:
    rows = [
        {**g, "said": 1e6 * g["predicted_s"], "seen": 1e6 * g["measured_s"],
         "where": "CPU" if g["on_cpu"] else "NPU"}
        for g in sorted(found["layers"], key=lambda g: -g["measured_s"])
    ]  # fmt: skip
    title = (
        f"Measured {1e3 * found['measured_s']:.4g} ms, predicted {1e3 * found['predicted_s']:.4g} "
        f"ms; {len(found['unmatched'])} nodes of the profile and {len(found['missing'])} layers of "
        f"the model have no partner; {len(found['fallbacks'])} layers ran on the CPU"
    )
    columns = {"name": "layer", "op": "operator", "seen": "measured us", "said": "predicted us",
               "where": "ran on"}  # fmt: skip
    return table_of(title, columns, rows)
