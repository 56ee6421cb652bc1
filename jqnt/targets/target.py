"""Reads a target description (TOML): legal formats, fusion chains, shared encodings."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jqnt.errors import ConfigError, nearest
from jqnt.formats import FP32, Format, Integer, format_named
from jqnt.graph.match import Chain

__all__ = ["Operator", "Target", "Tensors", "load_target", "target_names"]

Scales = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Tensors:
    """What holds for all weights, or for all activations: the default and the legal formats."""

    format: Format
    symmetric: bool
    granularity: Scales
    formats: frozenset[str]


@dataclass(frozen=True)
class Operator:
    """How one operator computes on grids.

    `encoding`: its output has one of its "own", has its input's ("shared"), or all its inputs and
    outputs have the same ("tied"). Without `output` it gives float. `weights` and `activations`
    narrow the target's legal formats, `granularity` its weights' default; `limits` is a fixed
    range of the output.
    """

    encoding: Literal["own", "shared", "tied"] = "own"
    output: bool = True
    granularity: Scales | None = None
    weights: frozenset[str] | None = None
    activations: frozenset[str] | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """A back end: formats, operators on grids (all others are float), what it fuses.

    `bias` is the format of biases at scale_x * scale_w, or float32.
    """

    name: str
    source: str
    activation: Tensors
    weight: Tensors
    bias: Format
    operators: Mapping[str, Operator]
    chains: tuple[Chain, ...]

    def legal(self, op: str, role: str) -> frozenset[str]:
        """The names of the formats that `op` takes in this role; float32 always is."""
        operator = self.operators.get(op, Operator())
        general, narrowed = (
            (self.weight, operator.weights)
            if role == "weight"
            else (self.activation, operator.activations)
        )
        return (general.formats if narrowed is None else narrowed) | {FP32.name}


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
        return Target(
            name=document["name"],
            source=document["source"],
            activation=_tensors(document["activation"], f"{where}, [activation]"),
            weight=_tensors(document["weight"], f"{where}, [weight]"),
            bias=format_named(document["bias"]["format"]),
            operators={
                op: _operator(entry, f"{where}, operator {op}")
                for op, entry in document["operators"].items()
            },
            chains=tuple(_chain(entry, where) for entry in document["chains"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {type(error).__name__} {error}: wrong or missing") from None


def _check_keys(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _tensors(table: Mapping[str, Any], where: str) -> Tensors:
    _check_keys(table, [*(f.name for f in fields(Tensors)), "strict"], where)
    default = format_named(table["format"])
    if table.get("strict", False):
        assert isinstance(default, Integer)
        default = Integer(default.bits, default.signed, strict=True)
    formats = frozenset(format_named(name).name for name in table["formats"])
    return Tensors(default, table["symmetric"], _scales(table["granularity"], where), formats)


def _operator(table: Mapping[str, Any], where: str) -> Operator:
    _check_keys(table, [f.name for f in fields(Operator)], where)
    values = dict(table)
    if values.get("encoding", "own") not in ("own", "shared", "tied"):
        raise ConfigError(f"{where}: encoding {values['encoding']!r} is not own, shared or tied")
    for key in ("weights", "activations"):
        if key in values:
            values[key] = frozenset(format_named(name).name for name in values[key])
    if "granularity" in values:
        _scales(values["granularity"], where)
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
