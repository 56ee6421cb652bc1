"""Reads AIMET's quantsim configuration (JSON) into a target description for one graph."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jqnt.errors import ConfigError, nearest
from jqnt.formats import FP32, Format, Integer, format_named
from jqnt.graph.ir import Graph
from jqnt.graph.match import Chain
from jqnt.targets import Operator, Target, Tensors
from jqnt.types import Symmetry

__all__ = ["Configuration", "read_quantsim_config"]


@dataclass(frozen=True)
class Configuration:
    """What `plan(graph, target=target)` takes, and the keys of the file that mean nothing here."""

    target: Target
    unhonoured: tuple[str, ...]


_SECTIONS = ("defaults", "params", "op_type", "supergroups", "model_input", "model_output")
_DEFAULTS = (
    "ops",
    "params",
    "strict_symmetric",
    "unsigned_symmetric",
    "per_channel_quantization",
    "supported_kernels",
    "hw_version",
)
_OPERATOR = (
    "is_input_quantized",
    "is_output_quantized",
    "is_symmetric",
    "params",
    "supported_kernels",
    "supported_qtypes",
    "per_channel_quantization",
    "encoding_constraints",
)
_PARAM = ("is_quantized", "is_symmetric")
_PASSES = {"MatmulAdd": Chain((("MatMul",), ("Add",)))}
"""What the graph passes fuse that are not written as supergroups: here a product and its bias."""


def read_quantsim_config(
    source: str | Path | Mapping[str, Any],
    graph: Graph,
    *,
    weights: str = "int8",
    activations: str = "uint8",
) -> Configuration:
    """The placement that a quantsim configuration describes, for the operators of `graph`.

    The file says which operators' inputs and outputs are quantized and how, what is fused
    (supergroups) and which formats exist (supported_kernels); `weights` and `activations` are
    the widths that AIMET takes beside it. General entries come first, specific ones win. A
    quantized bias is int32 at the product of its scales. With unsigned_symmetric the zero of a
    symmetric grid is its lowest code wherever calibration sees nothing negative.

    Raises ConfigError, naming the key, for a file that breaks the schema.
    Source: AIMET 2.42, quantsim_config_schema.py.
    """
    document, where = _parsed(source)
    _check(document, (*_SECTIONS, "supergroup_pass_list"), where)
    for key in _SECTIONS:
        if key not in document:
            raise ConfigError(f"{where}: the key {key!r} is missing")
    defaults = document["defaults"]
    _check(defaults, _DEFAULTS, f"{where}, defaults")
    ops, general = defaults.get("ops", {}), defaults.get("params", {})
    _check(ops, ("is_output_quantized", "is_symmetric"), f"{where}, defaults.ops")
    _check(general, _PARAM, f"{where}, defaults.params")
    strict = _flag(defaults, "strict_symmetric", where, False)
    even: Symmetry = "one_sided" if _flag(defaults, "unsigned_symmetric", where, False) else True
    base = _Base(
        even=even,
        activation=_tensors(activations, _symmetry(ops, where, False, even), False, False),
        weight=_tensors(
            weights,
            _symmetry(general, where, False, even),
            strict,
            _flag(defaults, "per_channel_quantization", where, False),
        ),
        output=_flag(ops, "is_output_quantized", where, False),
        params={"weight": general, "bias": general},
        where=where,
    ).narrowed(defaults)
    for kind, entry in document["params"].items():
        _check(entry, _PARAM, f"{where}, params.{kind}")
        base.params[kind] = {**general, **entry}
    for op, entry in document["op_type"].items():
        _check(entry, _OPERATOR, f"{where}, op_type.{op}")
    target = Target(
        name="quantsim",
        source=where,
        activation=base.activation,
        weight=base.weight,
        bias=Integer(32, signed=True),
        operators={
            op: _operator(base, op, document["op_type"].get(op, {}))
            for op in dict.fromkeys(node.op for node in graph.nodes)
        },
        chains=(
            *_chains(document["supergroups"], where),
            *(
                _PASSES[name]
                for name in document.get("supergroup_pass_list", ())
                if name in _PASSES
            ),
        ),
        graph_inputs=_flag(document["model_input"], "is_input_quantized", where, False),
        graph_outputs=_flag(document["model_output"], "is_output_quantized", where, False),
    )
    return Configuration(target, tuple(_unhonoured(document, base.params, where)))


@dataclass(frozen=True)
class _Base:
    """What holds where an operator's own entry says nothing."""

    even: Symmetry
    activation: Tensors
    weight: Tensors
    output: bool
    params: dict[str, Mapping[str, Any]]
    where: str

    def narrowed(self, entry: Mapping[str, Any]) -> "_Base":
        """With the formats of the entry's supported_kernels, if it has any."""
        kernels = entry.get("supported_kernels")
        if not kernels:
            return self
        signed = {"activation": False, "param": True}
        names: dict[str, set[str]] = {"activation": set(), "param": set()}
        for kernel in kernels:
            _check(kernel, tuple(signed), f"{self.where}, supported_kernels")
            for side, spec in kernel.items():
                names[side].update(_kernel_formats(spec, signed[side], self.where))
        activation = replace(self.activation, formats=frozenset(names["activation"]))
        weight = replace(self.weight, formats=frozenset(names["param"] or self.weight.formats))
        return replace(self, activation=activation, weight=weight)


def _kernel_formats(spec: Mapping[str, Any], signed: bool, where: str) -> tuple[str, ...]:
    """A kernel's width and type as format names; an integer may be written with either sign."""
    bits, dtype = spec.get("bitwidth"), spec.get("dtype")
    if dtype == "int" and isinstance(bits, int):
        return (f"int{bits}", f"uint{bits}")
    if dtype == "float" and bits in (16, 32):
        return (f"float{bits}",)
    raise ConfigError(f"{where}: supported_kernels has no kernel of {bits} bits and type {dtype!r}")


def _operator(base: _Base, op: str, entry: Mapping[str, Any]) -> Operator:
    where = f"{base.where}, op_type.{op}"
    base = base.narrowed(entry)
    own = entry.get("params", {})
    merged = {
        kind: {**base.params.get(kind, {}), **own.get(kind, {})} for kind in ("weight", "bias")
    }
    for kind, param in own.items():
        _check(param, _PARAM, f"{where}.params.{kind}")
    activation = replace(
        base.activation,
        symmetric=_symmetry(entry, where, base.activation.symmetric, base.even),
    )
    per_channel = _flag(
        entry, "per_channel_quantization", where, base.weight.granularity == "channel"
    )
    weight = replace(
        base.weight,
        symmetric=_symmetry(merged["weight"], where, base.weight.symmetric, base.even),
        granularity="channel" if per_channel else "tensor",
    )
    if not _flag(merged["weight"], "is_quantized", where, False):
        weight = replace(weight, format=FP32)
    quantized_bias = _flag(merged["bias"], "is_quantized", where, False)
    return Operator(
        inputs=_flag(entry, "is_input_quantized", where, False),
        output=_flag(entry, "is_output_quantized", where, base.output),
        weight=weight,
        activation=activation,
        bias=Integer(32, signed=True) if quantized_bias else FP32,
        limits=_limits(entry),
    )


def _limits(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    constraints = entry.get("encoding_constraints", {})
    if "min" not in constraints or "max" not in constraints:
        return None
    return float(constraints["min"]), float(constraints["max"])


def _chains(supergroups: Collection[Mapping[str, Any]], where: str) -> Iterator[Chain]:
    for group in supergroups:
        ops = group.get("op_list", ())
        if len(ops) < 2:
            raise ConfigError(f"{where}: a supergroup needs an op_list of two or more, not {ops}")
        yield Chain(tuple((op,) for op in ops))


def _unhonoured(
    document: Mapping[str, Any], params: Mapping[str, Any], where: str
) -> Iterator[str]:
    defaults = document["defaults"]
    if "hw_version" in defaults:
        yield "defaults.hw_version: its exceptions are not part of the file"
    for name in document.get("supergroup_pass_list", ()):
        if name not in _PASSES:
            yield f"supergroup_pass_list.{name}: what it fuses stays as the graph has it"
    for kind in params:
        if kind not in ("weight", "bias"):
            yield f"params.{kind}: only weights and biases of matrix products are quantized"
    for op, entry in document["op_type"].items():
        yield from (
            f"op_type.{op}.params.{kind}: only weights and biases are quantized"
            for kind in entry.get("params", {})
            if kind not in ("weight", "bias")
        )
        if "supported_qtypes" in entry:
            yield f"op_type.{op}.supported_qtypes: the formats are those of supported_kernels"
        if "encoding_constraints" in entry and _limits(entry) is None:
            yield f"op_type.{op}.encoding_constraints: needs both min and max"


def _symmetry(table: Mapping[str, Any], where: str, default: Symmetry, even: Symmetry) -> Symmetry:
    """`even` where the table says that a grid is symmetric; what it does not say is `default`."""
    if "is_symmetric" not in table:
        return default
    return even if _flag(table, "is_symmetric", where, False) else False


def _tensors(name: str, symmetric: Symmetry, strict: bool, per_channel: bool) -> Tensors:
    fmt: Format = format_named(name)
    if isinstance(fmt, Integer) and fmt.signed and strict:
        fmt = Integer(fmt.bits, signed=True, strict=True)
    sizes = (2, 4, 8, 16, 32)
    formats = {f"{sign}int{bits}" for sign in ("", "u") for bits in sizes} | {"float16", fmt.name}
    return Tensors(fmt, symmetric, "channel" if per_channel else "tensor", frozenset(formats))


def _parsed(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "quantsim configuration"
    where = f"quantsim configuration {str(source)!r}"
    try:
        document = json.loads(Path(source).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where} is no JSON object")
    return document, where


def _check(table: Any, known: Collection[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: an object is needed, not {table!r}")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _flag(table: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    """The schema's booleans are the strings "True" and "False"."""
    value = table.get(key, default)
    if value in (True, False, "True", "False"):
        return value in (True, "True")
    raise ConfigError(f'{where}: {key} is {value!r}, it must be "True" or "False"')
