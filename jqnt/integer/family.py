"""Many encodings of one graph on integers, by as few compiled programs as can be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jqnt.encodings import Encodings
from jqnt.formats import Integer
from jqnt.graph.ir import Graph
from jqnt.integer.lower import Program, compiled, program_of, runner, tables_of
from jqnt.integer.rule import container

__all__ = ["Family"]


@dataclass(frozen=True, eq=False)
class Family:
    """`family(params, encodings) -> run`, as `lower` gives it, for many encodings of one graph.

    Encodings that differ in their numbers, or in widths of one container (int4 and int8, say),
    run the same compiled program, kept in `programs`: what a search over widths needs.
    """

    graph: Graph
    arithmetic: str = "onnxruntime"
    unmatched: str = "error"
    programs: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, params: Mapping[str, Any], encodings: Encodings):
        """The network on integers under these encodings; UnsupportedError as in `lower`."""
        program = program_of(self.graph, params, encodings, self.arithmetic, self.unmatched, None)
        tables = tables_of(program)
        key = _signature(program, tables)
        if key not in self.programs:
            self.programs[key] = compiled(program)
        return runner(program, tables, self.programs[key])


def _signature(program: Program, tables: list[Any]) -> Any:
    """What a compiled program depends on: how codes lie in memory, and the shapes of its data."""
    kinds = []
    for name, encoding in program.encodings.items():
        fmt = encoding.format
        if isinstance(fmt, Integer) and fmt.bits <= 16:
            kinds.append((name, container(fmt), fmt.signed))
        else:
            kinds.append((name, fmt))
    leaves, structure = jax.tree.flatten(tables)
    return tuple(kinds), structure, tuple((np.shape(x), np.asarray(x).dtype) for x in leaves)
