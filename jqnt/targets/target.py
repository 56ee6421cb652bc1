"""Reads a target description (TOML): legal formats, fusion chains, shared encodings."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jqnt.errors import ConfigError, nearest
from jqnt.formats import FP32, Format, Integer, format_named
from jqnt.graph.match import Chain
from jqnt.types import Symmetry

__all__ = ["Operator", "Target", "Tensors", "load_target", "target_names"]

Scales = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Tensors:
    """What holds for all weights, or for all activations: the default and the legal formats, "*"
    where there is no limit."""

    format: Format
    symmetric: Symmetry
    granularity: Scales
    formats: frozenset[str]


@dataclass(frozen=True)
class Operator:
    """How one operator computes on grids.

    `encoding`: its output has one of its "own", has its input's ("shared"), or all its inputs and
    outputs have the same ("tied"). Without `inputs` it takes its data as they come, without
    `output` it gives float. `weight`, `activation` (of its output) and `bias` are what holds
    instead of the target's general entries; `limits` is a fixed range of the output.
    """

    encoding: Literal["own", "shared", "tied"] = "own"
    inputs: bool = True
    output: bool = True
    weight: Tensors | None = None
    activation: Tensors | None = None
    bias: Format | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """A back end: formats, operators on grids (all others are float), what it fuses.

    `bias` is the format of biases at scale_x * scale_w, or float32. `graph_inputs` and
    `graph_outputs` carry quantizers whatever reads or makes them.
    """

    name: str
    source: str
    activation: Tensors
    weight: Tensors
    bias: Format
    operators: Mapping[str, Operator]
    chains: tuple[Chain, ...]
    graph_inputs: bool = False
    graph_outputs: bool = False

    def tensors(self, op: str, role: str) -> Tensors:
        """What holds for the weights, or the activations, of `op`."""
        operator = self.operators.get(op, Operator())
        if role == "weight":
            return operator.weight or self.weight
        return operator.activation or self.activation

    def legal(self, op: str, role: str) -> frozenset[str]:
        """The names of the formats that `op` takes in this role; float32 always is."""
        return self.tensors(op, role).formats | {FP32.name}


def target_names() -> tuple[str, ...]:
    """The targets that ship with jqnt."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))


def load_target(target: str | Path) -> Target:
    """A shipped target by name, or the description in a TOML file by its path.

    Raises ConfigError for an unknown name, and for a file that cannot be read or holds an
    unknown or missing key, naming it.
    """
    path = Path(target)
    if path.suffix != ".toml":
        if str(target) not in target_names():
            known = nearest(str(target), target_names())
            raise ConfigError(f"no target {str(target)!r}{known}; or give the path of a .toml file")
        path = Path(__file__).parent / f"{target}.toml"
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"target {str(path)!r} cannot be read: {error}") from None
    where = f"target {str(path)!r}"
    _check_keys(document, [f.name for f in fields(Target)], where)
    try:
        weight = _tensors(document["weight"], f"{where}, [weight]")
        activation = _tensors(document["activation"], f"{where}, [activation]")
        return Target(
            name=document["name"],
            source=document["source"],
            activation=activation,
            weight=weight,
            bias=format_named(document["bias"]["format"]),
            operators={
                op: _operator(entry, weight, activation, f"{where}, operator {op}")
                for op, entry in document["operators"].items()
            },
            chains=tuple(_chain(entry, where) for entry in document["chains"]),
            graph_inputs=document.get("graph_inputs", False),
            graph_outputs=document.get("graph_outputs", False),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {type(error).__name__} {error}: wrong or missing") from None


def _check_keys(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _tensors(table: Mapping[str, Any], where: str, general: Tensors | None = None) -> Tensors:
    """A table of weights or activations; keys that are not there are those of `general`."""
    _check_keys(table, [*(f.name for f in fields(Tensors)), "strict"], where)
    if general is not None:
        held = general.format
        base = {f.name: getattr(general, f.name) for f in fields(Tensors)} | {
            "format": held.name,
            "strict": isinstance(held, Integer) and held.strict,
        }
        table = base | dict(table)
    default = format_named(table["format"])
    if table.get("strict", False) and isinstance(default, Integer):
        default = Integer(default.bits, default.signed, strict=True)
    formats = frozenset(n if n == "*" else format_named(n).name for n in table["formats"])
    symmetric = table["symmetric"]
    if symmetric not in (True, False, "one_sided"):
        raise ConfigError(f'{where}: symmetric {symmetric!r} is not true, false or "one_sided"')
    return Tensors(default, symmetric, _scales(table["granularity"], where), formats)


def _operator(
    table: Mapping[str, Any], weight: Tensors, activation: Tensors, where: str
) -> Operator:
    _check_keys(table, [f.name for f in fields(Operator)], where)
    values = dict(table)
    if values.get("encoding", "own") not in ("own", "shared", "tied"):
        raise ConfigError(f"{where}: encoding {values['encoding']!r} is not own, shared or tied")
    for key, general in (("weight", weight), ("activation", activation)):
        if key in values:
            values[key] = _tensors(values[key], f"{where}, {key}", general)
    if "bias" in values:
        values["bias"] = format_named(values["bias"])
    if "limits" in values:
        low, high = values["limits"]
        values["limits"] = (float(low), float(high))
    return Operator(**values)


def _scales(value: Any, where: str) -> Scales:
    if value not in ("tensor", "channel"):
        raise ConfigError(f"{where}: granularity {value!r} is not tensor or channel")
    return value


def _chain(table: Mapping[str, Any], where: str) -> Chain:
    _check_keys(table, [f.name for f in fields(Chain)], f"{where}, [[chains]]")
    return Chain(tuple(tuple(ops) for ops in table["ops"]), bool(table.get("joins", False)))
