"""Pieces of a graph that are reconstructed by themselves; equal pieces are one program."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jqnt.graph.ir import Graph, Node, captured
from jqnt.graph.lower import lower
from jqnt.graph.match import sole_reader, static_tensors
from jqnt.learn.reads import Read
from jqnt.learn.walk import frontier
from jqnt.types import Apply

__all__ = ["Block", "Span", "block_of", "blocks_of", "compiled_block", "layers_of"]

_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "Elu"}
)


@dataclass(frozen=True)
class Span:
    """What leads from the tensors `starts` to `end`; `position` is its first node's place.

    `weights` are the learnable ones that are first read here.
    """

    position: int
    starts: tuple[str, ...]
    end: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A piece of a graph without its own names: blocks of equal structure are equal.

    It leads from `inputs` to `end`; `nodes` and `constants` hold all that its lowering needs,
    apart from parameters and quantizers. `names` maps the graph's tensor names to the block's.
    """

    nodes: tuple[tuple[Any, ...], ...]
    constants: tuple[tuple[str, Any], ...]
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    end: str
    names: Mapping[str, str] = field(compare=False, hash=False)


def layers_of(graph: Graph, found: Sequence[Read]) -> tuple[Span, ...]:
    """One span for each layer, with the activation function that alone follows it."""
    spans, seen = [], set()
    for read in found:
        if read.weight in seen:
            continue
        seen.add(read.weight)
        end = read.node.outputs[0]
        after = sole_reader(graph, end)
        if after is not None and after.op == "Add" and read.node.op == "MatMul" and read.bias:
            end = after.outputs[0]
            after = sole_reader(graph, end)
        if after is not None and after.op in _ACTIVATIONS and after.inputs[0] == end:
            end = after.outputs[0]
        spans.append(Span(read.position, (read.data,), end, (read.weight,)))
    return tuple(spans)


def blocks_of(graph: Graph, found: Sequence[Read], least: int = 2) -> tuple[Span, ...]:
    """The network cut at inputs of layers, where one learned tensor flows alone (BRECQ's blocks).

    A residual block is one span, since its shortcut flows beside it; a chain of layers is cut
    into spans of at least `least` layers (except at the end). Tensors that no learned layer
    changes, such as masks, may flow along.
    """
    cuts = [0, *_cuts(graph, found)]
    ends = [*(next(iter(cut)) for cut in _cuts(graph, found).values()), graph.outputs[0]]
    stops = [*cuts[1:], len(graph.nodes)]
    spans: list[Span] = []
    seen: set[str] = set()
    for position, stop, end in zip(cuts, stops, ends, strict=True):
        inside = [r.weight for r in found if position <= r.position < stop]
        weights = tuple(w for w in dict.fromkeys(inside) if w not in seen)
        seen.update(weights)
        if spans and len(spans[-1].weights) < least:
            before = spans.pop()
            position, weights = before.position, before.weights + weights
        if weights:
            spans.append(Span(position, frontier(graph, position, [end]), end, weights))
    return tuple(spans)


def block_of(graph: Graph, span: Span) -> Block:
    """The piece of `graph` between the ends of `span`."""
    between = _between(graph, span)
    names: dict[str, str] = {"": ""}
    for name in (*span.starts, *(n for node in between for n in (*node.inputs, *node.outputs))):
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
    outer = [n for n in names if n and n not in made and n not in span.starts]
    return Block(
        nodes,
        tuple((names[n], _hashable(graph.constants[n])) for n in outer if n in graph.constants),
        tuple(names[n] for n in span.starts),
        tuple(names[n] for n in outer if n not in graph.constants),
        names[span.end],
        names,
    )


@functools.lru_cache(maxsize=256)
def compiled_block(block: Block) -> Apply:
    """The lowering of a block: one object for all equal blocks, so that programs are shared."""
    nodes = tuple(
        Node(op, f"node{i}", ins, outs, {k: _value(v) for k, v in attrs}, domain, since)
        for i, (op, domain, since, ins, outs, attrs) in enumerate(block.nodes)
    )
    constants = {name: _value(v) for name, v in block.constants}
    return lower(Graph("block", nodes, block.inputs, (block.end,), block.params, constants))


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


def _cuts(graph: Graph, found: Sequence[Read]) -> dict[int, set[str]]:
    """Positions before which a single learned tensor is alive, an input of a layer -> it."""
    static, data = static_tensors(graph), {read.data for read in found}
    readers = {read.position for read in found}
    last = dict.fromkeys(graph.outputs, len(graph.nodes))
    for i, node in enumerate(graph.nodes):
        for name in (*node.inputs, *captured(node)):
            last[name] = max(last.get(name, i), i)
    learned: set[str] = set()
    alive: set[str] = set()
    cuts = {}
    for i, node in enumerate(graph.nodes):
        if i in readers or learned.intersection((*node.inputs, *captured(node))):
            learned.update(name for name in node.outputs if name)
            alive.update(name for name in node.outputs if name in last and name not in static)
        alive = {name for name in alive if last[name] > i}
        if len(alive) == 1 and alive <= data and alive.intersection(node.outputs):
            cuts[i + 1] = set(alive)
    return cuts


def _between(graph: Graph, span: Span) -> tuple[Node, ...]:
    needed, nodes = {span.end}, []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs) - set(span.starts):
            nodes.append(node)
            needed.update(name for name in (*node.inputs, *captured(node)) if name)
    return tuple(reversed(nodes))
