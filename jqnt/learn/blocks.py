"""Where a graph is cut into layers and blocks that are reconstructed by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

from jqnt.graph.ir import Graph, captured
from jqnt.graph.match import sole_reader, static_tensors
from jqnt.learn.reads import Read
from jqnt.learn.walk import frontier

__all__ = ["Span", "blocks_of", "layers_of"]

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
