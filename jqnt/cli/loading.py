"""Names on the command line -> rules, metrics, evaluators, hashes."""

import hashlib
from pathlib import Path

import jax

from jqnt.data import Data, load_function
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.interop.rules_toml import load_rules
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
    found = [*(load_rules(file) if file is not None else ())]
    if weights or scales:
        found.append(Rule(role="weight", format=weights, granularity=scales))
    if activations:
        found.append(Rule(role="activation", format=activations))
    return tuple(found)


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
