"""Rules on top of a target's defaults: which tensors, and what they become; first match wins."""

import fnmatch
import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jqnt.errors import ConfigError, nearest
from jqnt.formats import Format, format_named
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import weight_of
from jqnt.types import Symmetry

__all__ = ["Rule", "Scales", "between", "first_and_last", "placed", "scheme", "unused"]

Role = Literal["weight", "activation", "bias"]

Scales = Granularity | Literal["tensor", "channel"] | int
"""One scale; one per output channel of the reader; one per block of so many summed inputs; or
the exact axis and block."""


@dataclass(frozen=True)
class Rule:
    """The tensors it speaks of (all that are given must match), and what it sets on them.

    `name` is a glob pattern, or several, for the tensor or for the node that it belongs to (the
    reader of a weight or bias, the maker of an activation with what is fused to it); `op` is one
    for the operator that computes there, the head of a fusion group. `format` is a Format or its
    name; "float32" leaves the tensor alone. `limits` is a fixed range. `scale_format` is a grid
    for the scales: "power_of_two", or "int4" and the like for block scales that are integers
    times one float per channel. `symmetric` may be "one_sided": zero is the lowest code where
    calibration sees nothing negative. `subgraph` stands for `name`: (inputs, outputs), and every
    tensor `between` them. What is None stays as the target has it.
    """

    name: str | tuple[str, ...] = "*"
    op: str = "*"
    role: Role | None = None
    format: Format | str | None = None
    granularity: Scales | None = None
    symmetric: Symmetry | None = None
    limits: tuple[float, float] | None = None
    scale_format: str | None = None
    subgraph: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def __post_init__(self):
        if self.subgraph is not None and self.name != "*" and not isinstance(self.name, tuple):
            raise ConfigError(f"{self}: give a name or a subgraph")
        if self.format is not None:
            _ = self.number_format  # an unknown name is an error here, not later
        if self.symmetric not in (None, True, False, "one_sided"):
            raise ConfigError(f'{self}: symmetric is true, false or "one_sided"')
        if isinstance(self.granularity, int) and self.granularity < 1:
            raise ConfigError(f"{self}: a block has at least one element")
        if self.scale_format not in (None, "power_of_two") and not self.scale_bits:
            raise ConfigError(
                f"{self}: a scale format is power_of_two, or int1 to int8 for block scales"
            )

    @property
    def number_format(self) -> Format | None:
        """`format` resolved."""
        return format_named(self.format) if isinstance(self.format, str) else self.format

    @property
    def scale_bits(self) -> int | None:
        """The bits of integer block scales, if the rule asks for them."""
        match = re.fullmatch(r"int([1-8])", self.scale_format or "")
        return int(match[1]) if match else None

    def matches(self, names: Collection[str], op: str, role: str) -> bool:
        """Whether it speaks of a tensor in this role that goes by any of these names."""
        if self.role is not None and self.role != role:
            return False
        if not fnmatch.fnmatchcase(op, self.op):
            return False
        patterns = (self.name,) if isinstance(self.name, str) else self.name
        return any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns for n in names)

    def __str__(self) -> str:
        given = {
            "name": self.name if self.name != "*" and self.subgraph is None else None,
            "op": self.op if self.op != "*" else None,
            "role": self.role,
            "format": getattr(self.number_format, "name", None),
            "granularity": self.granularity,
            "symmetric": self.symmetric,
            "limits": self.limits,
            "scale_format": self.scale_format,
            "subgraph": self.subgraph,
        }
        return f"Rule({', '.join(f'{k}={v!r}' for k, v in given.items() if v is not None)})"


def scheme(
    weights: Format | str = "int8",
    activations: Format | str = "uint8",
    *,
    per_channel: bool = True,
) -> tuple[Rule, ...]:
    """The usual two rules: `scheme("int4", "uint8")` is W4A8, a weight scale per channel."""
    return (
        Rule(role="weight", format=weights, granularity="channel" if per_channel else "tensor"),
        Rule(role="activation", format=activations),
    )


def between(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
    """Patterns, for `Rule(name=...)`, of the tensors on a path from `inputs` to `outputs`.

    Both ends are left out at the inputs and taken in at the outputs, as are the weights and
    biases on the way. Raises ConfigError for unknown tensors and where no path leads.
    """
    for name in (*inputs, *outputs):
        graph.check(name)
    static = static_tensors(graph)
    reached = set(inputs)
    for node in graph.nodes:
        if reached.intersection(node.inputs):
            reached.update(name for name in node.outputs if name)
    needed = set(outputs) & reached
    names: dict[str, None] = {}
    for node in reversed(graph.nodes):
        outs = [name for name in node.outputs if name in needed and name not in inputs]
        if outs:
            needed.update(name for name in node.inputs if name in reached)
            params = [name for name in node.inputs if name in static]
            names.update(dict.fromkeys((*outs, *params)))
    if not names:
        raise ConfigError(f"no path leads from {list(inputs)} to {list(outputs)}")
    return tuple(glob.escape(name) for name in names)


def placed(rules: Sequence[Rule], graph: Graph) -> tuple[Rule, ...]:
    """The rules with the names of their subgraphs. Raises what `between` raises."""
    return tuple(
        rule if rule.subgraph is None else replace(rule, name=between(graph, *rule.subgraph))
        for rule in rules
    )


def first_and_last(graph: Graph) -> tuple[str, ...]:
    """Patterns of the weights of the first and the last node that have one."""
    static = static_tensors(graph)
    weights = [w.tensor for node in graph.nodes if (w := weight_of(node, static)) is not None]
    if not weights:
        raise ConfigError(f"graph {graph.name!r} has no convolution or matrix product")
    return tuple(glob.escape(name) for name in dict.fromkeys((weights[0], weights[-1])))


def unused(rules: Sequence[Rule], used: Collection[int], known: Collection[str]) -> None:
    """Raises ConfigError for the first rule that was never the first to match."""
    for i, rule in enumerate(rules):
        if i in used:
            continue
        patterns = (rule.name,) if isinstance(rule.name, str) else rule.name
        plain = [p for p in patterns if not glob.has_magic(p) and p not in known]
        hint = nearest(plain[0], known) if plain else ""
        raise ConfigError(
            f"rule {i + 1}, {rule}, applies to no tensor (an earlier rule may match first){hint}"
        )
