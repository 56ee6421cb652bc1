"""`jqnt inspect`: what is in a model, and what would be quantized how, and why."""

from collections import Counter
from typing import Any

import numpy as np

from jqnt.cli.console import emit
from jqnt.cli.loading import rules_of
from jqnt.cli.options import Activations, AsJson, Model, RulesFile, Scales, Target, Weights
from jqnt.formats import Minifloat
from jqnt.graph.ir import Graph
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.target_file import read_target
from jqnt.placement import plan
from jqnt.plan import Plan, Spec
from jqnt.report import table_of
from jqnt.scales import PowersOfTwo
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Params

__all__ = ["inspect"]


def inspect(
    model: Model,
    target: Target = "onnxruntime",
    weights: Weights = None,
    activations: Activations = None,
    scales: Scales = None,
    rules: RulesFile = None,
    json: AsJson = False,
) -> None:
    """Show a model's graph, and the plan: tensor, role, format, scales, and why."""
    graph, params, _ = import_onnx(model)
    folded, folded_params = fold_bn(*cleanup(graph, params))
    described = read_target(target, folded)
    own = rules_of(rules, weights, activations, scales)
    laid = plan(folded, (*own, *described.rules), target=described.target)
    document = {
        "graph": _summary(graph, params),
        "plan": _rows(laid, folded, folded_params),
        "unhonoured": list(described.unhonoured),
    }
    summary = [{"what": key, "value": _text(value)} for key, value in document["graph"].items()]
    columns = {
        "tensor": "tensor",
        "role": "role",
        "format": "format",
        "scales": "scales",
        "why": "why",
    }
    tables: list[Any] = [
        table_of(graph.name, {"what": "", "value": ""}, summary),
        table_of("Plan (batch normalization folded)", columns, document["plan"]),
    ]
    tables += [f"{target}, not honoured: {key}" for key in described.unhonoured]
    emit(document, tables, json)


def _summary(graph: Graph, params: Params) -> dict[str, Any]:
    def described(name: str) -> str:
        info = graph.info.get(name)
        shape = ", ".join("?" if d is None else str(d) for d in info.shape or ()) if info else "?"
        return f"{name} {info.dtype if info else '?'}[{shape}]"

    return {
        "inputs": [described(name) for name in graph.inputs],
        "outputs": [described(name) for name in graph.outputs],
        "opsets": {domain or "ai.onnx": version for domain, version in graph.opsets.items()},
        "nodes": len(graph.nodes),
        "operators": dict(Counter(node.op for node in graph.nodes).most_common()),
        "parameters": int(sum(np.size(value) for value in params.values())),
    }


def _rows(laid: Plan, graph: Graph, params: Params) -> list[dict[str, Any]]:
    order = {name: i for i, name in enumerate(graph.tensors)}
    rows = [
        {
            "tensor": name,
            "role": spec.role,
            "format": spec.format.name,
            "scales": _scales(spec),
            "symmetric": spec.symmetric,
            "why": spec.rule,
        }
        for name, spec in laid.specs.items()
    ]
    for name, leader in laid.tied.items():
        fmt = laid.specs[leader].format.name
        why = f"shares the quantizer of {leader}"
        rows.append({"tensor": name, "role": "activation", "format": fmt, "why": why})
    for name, (x, weight) in laid.biases.items():
        why = f"scale of {x} times scale of {weight}"
        rows.append({"tensor": name, "role": "bias", "format": "int32", "why": why})
    return sorted(rows, key=lambda row: order[row["tensor"]])


def _scales(spec: Spec) -> str:
    granularity = spec.granularity
    if isinstance(spec.format, Minifloat) and not spec.format.scaled:
        return "none"
    if granularity.axis is None:
        text = "one"
    elif granularity.block is None:
        text = f"per index of axis {granularity.axis}"
    else:
        text = f"per block of {granularity.block} on axis {granularity.axis}"
    if isinstance(spec.scale_format, PowersOfTwo):
        text += ", powers of two"
    elif spec.scale_format is not None:
        text += f", int{spec.scale_format.bits} times one per channel"
    return text


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
