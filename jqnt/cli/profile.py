"""`jqnt profile`: predicted latency layer by layer, with what bounds each layer."""

from dataclasses import asdict
from typing import Annotated

import typer

from jqnt.cli.console import emit
from jqnt.cli.options import AsJson, Device, FrozenPath
from jqnt.encodings import Encodings
from jqnt.frozen import load_frozen
from jqnt.npu import device as load_device
from jqnt.npu import latency, latency_range, tables, workload
from jqnt.npu.layers import layer_costs
from jqnt.report import layer_table
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
    top: Annotated[int, typer.Option(help="show only so many layers, slowest first; 0: all")] = 0,
    json: AsJson = False,
) -> None:
    """Predict a model's latency on a device, layer by layer."""
    target = load_device(device)
    frozen = load_frozen(model)
    graph, params = fold_bn(*cleanup(frozen.graph, frozen.params))
    work = workload(graph, params, batch)
    choice: str | Encodings = pair or (frozen.encodings or target.pairs[0].name)
    rows = layer_costs(work, choice, target)
    total = float(latency(work, choice, target))
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
        "size_bytes": sum(row.weight_bytes for row in rows),
        "layers": layers,
    }
    shown = sorted(layers, key=lambda row: -row["latency_s"])[:top] if top else layers
    title = (
        f"{frozen.graph.name} on {target.name}: {1e3 * total:.4g} ms "
        f"(fastest legal plan {1e3 * fastest:.4g} ms, slowest {1e3 * slowest:.4g} ms)"
    )
    emit(document, [layer_table(shown, title)], json)
