"""The report of a recovery as data: everything that the page and the terminal show."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from jqnt.compare import Row, compare
from jqnt.data import Data
from jqnt.encodings import Encodings
from jqnt.formats import Integer
from jqnt.learn.quality import Quality
from jqnt.learn.staircase import Recovery, Step
from jqnt.metrics import Metric
from jqnt.npu import Device
from jqnt.npu.layers import LayerCost
from jqnt.report.checks import Evidence, checks
from jqnt.report.page import page

__all__ = ["Provenance", "Report", "report"]

_BATCHES = 2
"""Batches of the evaluation data on which layers are compared."""

_PACKAGES = ("jqnt", "jax", "jaxlib", "flax", "optax", "numpy", "onnx")


@dataclass(frozen=True)
class Provenance:
    """What repeats the run, beside the data: the model's file and hash, the key, the settings."""

    model: str = ""
    model_sha256: str = ""
    key: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Report:
    """`document` is plain JSON data; a notebook shows the page."""

    document: dict[str, Any]

    def json(self) -> str:
        """The document as text; what is infinite or unknown is null."""
        return json.dumps(self.document, indent=1, allow_nan=False)

    def html(self) -> str:
        """One self-contained page: no script, no other file, nothing fetched."""
        return page(self.document)

    def _repr_html_(self) -> str:
        return page(self.document, whole=False)


def report(
    recovery: Recovery,
    *,
    metric: Metric,
    device: Device,
    calib: Data,
    evaluation: Data,
    provenance: Provenance,
) -> Report:
    """Compares the chosen step's layers on two batches of `evaluation`, and gathers the rest.

    Metrics are shown in the metric's own direction (an error as it is, not negated).
    """
    step = recovery.chosen
    compared = _compared(step, evaluation)
    layers = [_layer(cost, compared, step) for cost in step.layers]
    evidence = Evidence(recovery, step, device, metric, calib.samples, tuple(compared.values()))
    document = {
        "format": "jqnt report 1",
        "model": {
            "name": step.graph.name,
            "source": provenance.model,
            "sha256": provenance.model_sha256,
            "parameters": sum(math.prod(p.shape) for p in recovery.steps[0].params.values()),
            "inputs": {n: _shape(step, n) for n in step.graph.inputs},
        },
        "data": {
            "calib": {"source": calib.source, "samples": calib.samples, "sha256": calib.digest},
            "eval": {
                "source": evaluation.source,
                "samples": evaluation.samples,
                "sha256": evaluation.digest,
            },
        },
        "metric": {"name": metric.name, "unit": metric.unit, "more_is_better": metric.sign > 0},
        "device": {"name": device.name, "pairs": [pair.name for pair in device.pairs]},
        "target": {"max_drop": recovery.max_drop, "max_latency_s": recovery.max_latency_s},
        "met": recovery.meets(step),
        "chosen": step.name,
        "steps": [_step(recovery, s, metric.sign) for s in recovery.steps],
        "layers": layers,
        "tensors": [_tensor(row) for row in compared.values()],
        "checks": [asdict(check) for check in checks(evidence)],
        "key": provenance.key,
        "settings": dict(provenance.settings),
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
    }
    return Report(_plain(document))


def _compared(step: Step, evaluation: Data) -> dict[str, Row]:
    batches = [batch for batch, _ in zip(evaluation, range(_BATCHES), strict=False)]
    graph = step.graph
    made = [t for node in graph.nodes for t in node.outputs if t]
    wanted = {cost.output for cost in step.layers} | set(step.encodings) | set(graph.outputs)
    rows = compare(
        graph,
        step.reference,
        step.params,
        step.encodings,
        batches,
        tensors=[t for t in made if t in wanted],
    )
    return {row.tensor: row for row in rows}


def _step(recovery: Recovery, step: Step, sign: int) -> dict[str, Any]:
    whole = step.metric_integer
    return {
        "name": step.name,
        "detail": step.detail,
        "metric_float_sim": sign * step.metric_float_sim,
        "metric_integer": None if whole is None else sign * whole,
        "drop": recovery.drop(step),
        "latency_s": step.latency_s,
        "size_bytes": step.size_bytes,
        "seconds": step.seconds,
        "fits": recovery.fits(step),
        "meets": recovery.meets(step),
        "chosen": step is recovery.chosen,
    }


def _layer(cost: LayerCost, compared: Mapping[str, Row], step: Step) -> dict[str, Any]:
    row = compared.get(cost.output)
    total = step.latency_s or 0.0
    weight = step.encodings.tensors.get(cost.weight)
    return {
        **asdict(cost),
        "share": cost.latency_s / total if total else None,
        "intensity": cost.intensity,
        "weight_bits": _bits(cost.weight, step.encodings),
        "activation_bits": _bits(cost.output, step.encodings),
        "weight_format": weight.format.name if weight else None,
        "weight_scales": int(weight.scale.size) if weight and weight.scale is not None else None,
        "sqnr_db": row.simulation.sqnr_db if row else None,
        "cosine": row.simulation.cosine if row else None,
    }


def _bits(tensor: str, encodings: Encodings) -> int | None:
    """Bits of an encoded tensor; None where there is none or it stays float."""
    encoding = encodings.tensors.get(tensor)
    return encoding.format.bits if encoding else None


def _tensor(row: Row) -> dict[str, Any]:
    def figures(quality: Quality | None) -> dict[str, Any] | None:
        return asdict(quality) if quality else None

    return {
        "tensor": row.tensor,
        "node": row.node,
        "op": row.op,
        "format": row.format,
        "simulation": figures(row.simulation),
        "integers": figures(row.integers),
    }


def _shape(step: Step, name: str) -> list[Any]:
    info = step.graph.info.get(name)
    encoding = step.encodings.tensors.get(name)
    fmt = encoding.format if encoding else None
    kind = fmt.name if isinstance(fmt, Integer) else "float32"
    return [kind, *(info.shape or ())] if info else [kind]


def _plain(value: Any) -> Any:
    """Python's own types, and null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float) or hasattr(value, "__float__"):
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)
