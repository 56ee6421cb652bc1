"""Writes a target description as AIMET's quantsim configuration (JSON)."""

import itertools
from collections.abc import Iterator
from typing import Any

from jqnt.formats import Integer
from jqnt.targets import Operator, Target, Tensors
from jqnt.types import Symmetry

__all__ = ["quantsim_config"]


def quantsim_config(target: Target) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(document, what it cannot say) for `json.dump`.

    Every operator of the target has an entry of its own; all others stay float. An operator that
    moves its input's encoding has no quantizer at its output. Widths stand beside the file: AIMET
    takes them as arguments. Source: AIMET 2.42, quantsim_config_schema.py.
    """
    weight, activation = target.weight, target.activation
    document = {
        "defaults": {
            "ops": {"is_symmetric": _text(bool(activation.symmetric))},
            "params": {"is_quantized": "True", "is_symmetric": _text(bool(weight.symmetric))},
            "strict_symmetric": _text(_strict(weight)),
            "unsigned_symmetric": _text("one_sided" in _symmetries(target)),
            "per_channel_quantization": _text(weight.granularity == "channel"),
            "supported_kernels": list(_kernels(activation, weight)),
        },
        "params": {"bias": {"is_quantized": _text(isinstance(target.bias, Integer))}},
        "op_type": {op: _entry(target, entry) for op, entry in target.operators.items()},
        "supergroups": [
            {"op_list": list(ops)}
            for chain in target.chains
            for ops in itertools.product(*chain.ops)
        ],
        "model_input": {"is_input_quantized": "True"} if target.graph_inputs else {},
        "model_output": {"is_output_quantized": "True"} if target.graph_outputs else {},
    }
    return document, tuple(_unsaid(target))


def _entry(target: Target, operator: Operator) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "is_output_quantized": _text(operator.output and operator.encoding != "shared")
    }
    if operator.inputs and operator.encoding != "shared":
        entry["is_input_quantized"] = "True"
    if operator.activation is not None:
        entry["is_symmetric"] = _text(bool(operator.activation.symmetric))
    params: dict[str, Any] = {}
    if operator.weight is not None:
        params["weight"] = {
            "is_quantized": _text(isinstance(operator.weight.format, Integer)),
            "is_symmetric": _text(bool(operator.weight.symmetric)),
        }
        entry["per_channel_quantization"] = _text(operator.weight.granularity == "channel")
    if operator.bias is not None:
        params["bias"] = {"is_quantized": _text(isinstance(operator.bias, Integer))}
    if params:
        entry["params"] = params
    if operator.limits is not None:
        entry["encoding_constraints"] = dict(zip(("min", "max"), operator.limits, strict=True))
    return entry


def _kernels(activation: Tensors, weight: Tensors) -> Iterator[dict[str, Any]]:
    """Every pair of formats that the schema has a width for."""
    for a, w in itertools.product(_widths(activation), _widths(weight)):
        yield {"activation": a, "param": w}


def _widths(tensors: Tensors) -> list[dict[str, Any]]:
    names = {name.removeprefix("u") for name in tensors.formats}
    found = [(bits, "int") for bits in (4, 8, 16, 32) if f"int{bits}" in names]
    found += [(16, "float")] if "float16" in names else []
    return [{"bitwidth": bits, "dtype": dtype} for bits, dtype in found]


def _symmetries(target: Target) -> set[Symmetry]:
    """Those of every weight and activation."""
    given = [target.weight, target.activation]
    for operator in target.operators.values():
        given += [t for t in (operator.weight, operator.activation) if t is not None]
    return {tensors.symmetric for tensors in given}


def _unsaid(target: Target) -> Iterator[str]:
    if {True, "one_sided"} <= _symmetries(target):
        yield "unsigned_symmetric holds for every symmetric grid, not for some of them"
    for op, operator in target.operators.items():
        if operator.encoding == "tied":
            yield f"{op}: its inputs and output share one encoding"
    for chain in target.chains:
        if chain.joins:
            yield f"{' + '.join('|'.join(ops) for ops in chain.ops)}: joins another activation"


def _strict(tensors: Tensors) -> bool:
    return isinstance(tensors.format, Integer) and tensors.format.strict


def _text(value: bool) -> str:
    """The schema's booleans are strings."""
    return "True" if value else "False"
