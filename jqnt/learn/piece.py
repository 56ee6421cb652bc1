"""A piece of a graph without its own names, so that equal pieces are one compiled program."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jqnt.graph.ir import Graph, Node, captured
from jqnt.graph.lower import lower
from jqnt.types import Apply

__all__ = ["Piece", "compiled", "piece_of"]


@dataclass(frozen=True)
class Piece:
    """What leads from the tensors `inputs` to `ends`; pieces of equal structure are equal.

    `nodes` and `constants` hold all that its lowering needs, apart from parameters and
    quantizers. `names` maps the graph's tensor names to the piece's.
    """

    nodes: tuple[tuple[Any, ...], ...]
    constants: tuple[tuple[str, Any], ...]
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    ends: tuple[str, ...]
    names: Mapping[str, str] = field(compare=False, hash=False)

    @property
    def end(self) -> str:
        """The only end, of a piece that has one."""
        (end,) = self.ends
        return end

    def own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the piece's tensors, of all that a graph has, by the piece's names."""
        return {short: values[name] for name, short in self.names.items() if name in values}


def piece_of(graph: Graph, starts: Sequence[str], ends: Sequence[str]) -> Piece:
    """The piece of `graph` that computes `ends` from `starts` and the parameters."""
    between = _between(graph, starts, ends)
    names: dict[str, str] = {"": ""}
    for name in (*starts, *(n for node in between for n in (*node.inputs, *node.outputs))):
        names.setdefault(name, f"t{len(names)}")
    nodes = tuple(
        (
            node.op,
            node.domain,
            node.since,
            tuple(names[n] for n in node.inputs),
            tuple(names[n] for n in node.outputs),
            tuple(sorted((k, _hashable(v)) for k, v in node.attrs.items())),
        )
        for node in between
    )
    made = {name for node in between for name in node.outputs}
    outer = [n for n in names if n and n not in made and n not in starts]
    return Piece(
        nodes,
        tuple((names[n], _hashable(graph.constants[n])) for n in outer if n in graph.constants),
        tuple(names[n] for n in starts),
        tuple(names[n] for n in outer if n not in graph.constants),
        tuple(names[n] for n in ends),
        names,
    )


@functools.lru_cache(maxsize=256)
def compiled(piece: Piece) -> Apply:
    """The lowering of a piece: one object for all equal ones, so that programs are shared."""
    nodes = tuple(
        Node(op, f"node{i}", ins, outs, {k: _value(v) for k, v in attrs}, domain, since)
        for i, (op, domain, since, ins, outs, attrs) in enumerate(piece.nodes)
    )
    constants = {name: _value(v) for name, v in piece.constants}
    return lower(Graph("piece", nodes, piece.inputs, piece.ends, piece.params, constants))


@dataclass(frozen=True)
class _Frozen:
    """A numpy array as a value that can be hashed."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _Frozen(value.dtype.str, value.shape, value.tobytes())
    return tuple(value) if isinstance(value, list) else value


def _value(value: Any) -> Any:
    if isinstance(value, _Frozen):
        return np.frombuffer(value.data, np.dtype(value.dtype)).reshape(value.shape)
    return value


def _between(graph: Graph, starts: Sequence[str], ends: Sequence[str]) -> tuple[Node, ...]:
    needed, nodes, given = set(ends), [], set(starts)
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs) - given:
            nodes.append(node)
            needed.update(name for name in (*node.inputs, *captured(node)) if name)
    return tuple(reversed(nodes))
