"""Names on the command line -> rules, metrics, evaluators, hashes."""

import hashlib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from jqnt.data import Data, load_function
from jqnt.errors import ConfigError, nearest
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.metrics import Evaluate, Metric, evaluator, metric_named, user_metric
from jqnt.rules import Rule, Scales
from jqnt.types import Params

__all__ = ["evaluator_of", "metric_of", "rules_of", "sha256_of"]


def metric_of(name: str) -> Metric:
    """A metric by name, or the user's module:function."""
    return user_metric(name, load_function(name, "metric")) if ":" in name else metric_named(name)


def evaluator_of(metric: Metric, data: Data, graph: Graph, params: Params) -> Evaluate:
    """Judges networks on `data`; the float network is the reference where one is needed."""
    apply = jax.jit(lower(graph))
    return evaluator(metric, data, graph.inputs, reference=lambda x: apply(params, {}, x))


def rules_of(
    file: Path | None, weights: str | None, activations: str | None, scales: Scales | None
) -> tuple[Rule, ...]:
    """The rules of a file, then those for all weights and all activations that options name."""
    found = [*_load_rules(file)]
    if weights or scales:
        found.append(Rule(role="weight", format=weights, granularity=scales))
    if activations:
        found.append(Rule(role="activation", format=activations))
    return tuple(found)


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_rules(path: Path | None) -> tuple[Rule, ...]:
    """The [[rule]] tables of a TOML file, with the fields of `Rule`; none without a file."""
    if path is None:
        return ()
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"rules {str(path)!r} cannot be read: {error}") from None
    for key in document:
        if key != "rule":
            raise ConfigError(f"{path}: unknown table {key!r}; expected [[rule]]")
    known = [field.name for field in fields(Rule)]
    found = []
    for number, table in enumerate(document.get("rule", ()), start=1):
        for key in table:
            if key not in known:
                raise ConfigError(f"{path}, rule {number}: unknown {key!r}{nearest(key, known)}")
        values: dict[str, Any] = {k: _value(v, f"{path}, rule {number}") for k, v in table.items()}
        found.append(Rule(**values))
    if not found:
        raise ConfigError(f"{path}: holds no [[rule]]")
    return tuple(found)


def _value(value: Any, where: str) -> Any:
    """Lists become tuples; a table of axis and block is a `Granularity`."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    for key in value:
        if key not in ("axis", "block"):
            raise ConfigError(f"{where}: a granularity has axis and block, not {key!r}")
    return Granularity(**{k: _value(v, where) for k, v in value.items()})
