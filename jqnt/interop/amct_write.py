"""Writes a plan as Huawei AMCT's config.json."""

from collections.abc import Collection
from typing import Any

from jqnt.errors import UnsupportedError
from jqnt.formats import FP32, Integer
from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import weight_of
from jqnt.plan import Plan, Spec

__all__ = ["amct_config"]


def amct_config(
    graph: Graph, plan: Plan, *, batch_num: int = 1, learned_rounding: Collection[str] = ()
) -> dict[str, Any]:
    """The document, for `json.dump`: an entry for every layer that has a weight.

    A layer whose input or weight the plan leaves float is disabled. `learned_rounding` names the
    layers whose weights AMCT is to round by learning (`ada_quantize`).

    Raises UnsupportedError for what a layer of AMCT cannot be: other widths than 8 and 16 bits,
    blocks, or scales on another axis than the output channels.
    Source: AMCT, docs/zh/context/ptq_config_param.md.
    """
    static = static_tensors(graph)
    layers: dict[str, Any] = {}
    for node in graph.nodes:
        weight = weight_of(node, static)
        if weight is None:
            continue
        x = plan.specs.get(plan.tied.get(weight.data, weight.data))
        w = plan.specs.get(weight.tensor)
        if x is None or w is None or FP32 in (x.format, w.format):
            layers[node.name] = {"quant_enable": False}
            continue
        axis = w.granularity.axis
        if w.granularity.block is not None or axis not in (None, weight.channel_axis):
            raise UnsupportedError(f"layer {node.name!r}: AMCT has one scale or one per channel")
        learned = node.name in learned_rounding
        layers[node.name] = {
            "quant_enable": True,
            "activation_quant_params": {
                "num_bits": _width(node.name, x),
                "act_algo": "ifmr",
                "asymmetric": not x.symmetric,
            },
            "weight_quant_params": {
                "num_bits": _width(node.name, w),
                "wts_algo": "ada_quantize" if learned else "arq_quantize",
                "channel_wise": axis is not None,
            },
        }
    return {"version": 1, "batch_num": batch_num, "activation_offset": True, **layers}


def _width(layer: str, spec: Spec) -> int:
    if not isinstance(spec.format, Integer) or spec.format.bits not in (8, 16):
        raise UnsupportedError(f"layer {layer!r}: AMCT has 8 and 16 bits, not {spec.format.name}")
    return spec.format.bits
