"""The float and the quantized network side by side: what each layer is given, layer by layer."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import DataError
from jqnt.graph.ir import Graph, captured
from jqnt.graph.lower import lower
from jqnt.graph.match import static_tensors
from jqnt.learn.piece import Piece, compiled, piece_of
from jqnt.types import Apply, Params, QParams

__all__ = ["Front", "Networks", "Pair", "advance", "fits", "frontier", "look", "start"]


class Pair(NamedTuple):
    """One batch in both networks: tensor name -> array."""

    exact: dict[str, Any]
    lossy: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Front:
    """How far both networks have come: the tensors `names`, for every batch."""

    names: tuple[str, ...]
    pairs: list[Pair]


class Networks(NamedTuple):
    """The parameters of the float network, those of the quantized one, and its quantizers."""

    exact: Params
    lossy: Params
    qparams: QParams


def start(
    graph: Graph,
    networks: Networks,
    batches: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]],
) -> Front:
    """The front before the first node; other keys of the batches (labels) are dropped.

    Raises DataError if there are no batches, or one lacks an input.
    """
    pairs = []
    for i, batch in enumerate(batches if isinstance(batches, Iterable) else batches()):
        if missing := [name for name in graph.inputs if name not in batch]:
            raise DataError(f"batch {i} has no {missing[0]!r}; it has {', '.join(batch)}")
        exact = {name: jnp.asarray(batch[name]) for name in graph.inputs}
        own = {name: q for name, q in networks.qparams.items() if name in exact}
        pairs.append(Pair(exact, {**exact, **_quantized(own, {n: exact[n] for n in own})}))
    if not pairs:
        raise DataError("there are no calibration batches")
    return Front(graph.inputs, pairs)


def frontier(graph: Graph, position: int, wanted: Collection[str]) -> tuple[str, ...]:
    """The tensors made before node `position` that the way from there to `wanted` reads."""
    static = static_tensors(graph)
    needed = set(wanted)
    made: set[str] = set()
    for node in reversed(graph.nodes[position:]):
        made.update(node.outputs)
        if needed.intersection(node.outputs):
            needed.update(name for name in (*node.inputs, *captured(node)) if name)
    return tuple(t for t in graph.tensors if t in needed - made and t not in static)


def look(graph: Graph, front: Front, names: Sequence[str], networks: Networks) -> Iterator[Pair]:
    """Runs both networks on from the front to the tensors `names`, batch by batch."""
    run = _run(graph, front, names, networks)
    for pair in front.pairs:
        yield run(pair)


def advance(graph: Graph, front: Front, names: Sequence[str], networks: Networks) -> Front:
    """The front moved on to `names`; the old one is used up, so that one is held at a time."""
    run = _run(graph, front, names, networks)
    for i, pair in enumerate(front.pairs):
        front.pairs[i] = run(pair)
    return Front(tuple(names), front.pairs)


def fits(
    shapes: Mapping[str, jax.ShapeDtypeStruct], names: Iterable[str], count: int, memory: int
) -> bool:
    """Whether a front may be held: floats only, and `count` batches of both within `memory` bytes.

    Integers may be shapes, which must not become inputs of a program.
    """
    found = [shapes[name] for name in names]
    size = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in found)
    return all(jnp.issubdtype(s.dtype, jnp.floating) for s in found) and 2 * count * size <= memory


def _run(
    graph: Graph, front: Front, names: Sequence[str], networks: Networks
) -> Callable[[Pair], Pair]:
    """One compiled program for both networks; none where the front has all that is wanted."""
    if set(names) <= set(front.names):
        return lambda pair: Pair(*({name: side[name] for name in names} for side in pair))
    # What the front holds has been quantized already.
    later = {name: q for name, q in networks.qparams.items() if name not in front.names}
    piece = piece_of(graph, front.names, names)
    if any(isinstance(v, Graph) for node in piece.nodes for _, v in node[-1]):
        # Bodies of control flow read outer names, which are the graph's own.
        program = jax.jit(functools.partial(_both, lower(graph, front.names, tuple(names))))
        return lambda pair: program(networks.exact, networks.lossy, later, pair)
    exact, lossy, later = (piece.own(v) for v in (networks.exact, networks.lossy, later))
    outer = {piece.names[name]: name for name in names}

    def run(pair: Pair) -> Pair:
        given = Pair(*({piece.names[name]: side[name] for name in front.names} for side in pair))
        found = _program(piece, exact, lossy, later, given)
        return Pair(*({outer[name]: x for name, x in side.items()} for side in found))

    return run


@jax.jit
def _quantized(qparams: QParams, values: Any) -> Any:
    return {name: quantizer(values[name]) for name, quantizer in qparams.items()}


@functools.partial(jax.jit, static_argnums=0)
def _program(piece: Piece, exact: Any, lossy: Any, later: Any, pair: Pair) -> Pair:
    return _both(compiled(piece), exact, lossy, later, pair)


def _both(apply: Apply, exact: Any, lossy: Any, later: Any, pair: Pair) -> Pair:
    return Pair(apply(exact, {}, pair.exact), apply(lossy, later, pair.lossy))
