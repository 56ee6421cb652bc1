"""A network as a chain of segments, so that what changes late is computed from there on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqnt.graph.ir import Graph, captured
from jqnt.graph.lower import lower
from jqnt.graph.match import static_tensors
from jqnt.graph.shapes import infer_shapes
from jqnt.types import Apply, Params, QParams

__all__ = ["Segments", "segment"]


@dataclass(frozen=True, eq=False)
class Segments:
    """Segment s leads from cut s to cut s + 1: everything that flows goes through the cuts.

    `cuts` are the tensors between segments (one fewer than there are segments), `first` maps
    every tensor to the first segment that reads or makes it.
    """

    graph: Graph
    cuts: tuple[str, ...]
    first: Mapping[str, int]

    @cached_property
    def applies(self) -> tuple[Apply, ...]:
        """Each segment lowered by itself."""
        starts = [self.graph.inputs, *((cut,) for cut in self.cuts)]
        ends = [*((cut,) for cut in self.cuts), self.graph.outputs]
        return tuple(lower(self.graph, a, b) for a, b in zip(starts, ends, strict=True))

    def run(self, params: Params, qparams: QParams, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The value at each cut, before the cut's own quantizer, then the outputs (a dict)."""
        values: list[Any] = []
        for s in range(len(self.applies)):
            values.append(self._step(s, params, qparams, values[-1] if s else inputs))
        return tuple(values)

    def resume(
        self,
        params: Params,
        qparams: QParams,
        inputs: Mapping[str, Any],
        known: Sequence[Any],
        start: Int[Array, ""],
    ) -> tuple[Any, ...]:
        """What `run` gives, computed from segment `start` on (traced); before it `known` holds:
        what `kept` makes of the values with quantizers that do not differ there."""
        values: list[Any] = [inputs]
        for s in range(len(self.applies) - 1):

            def onward(value: Any, s: int = s) -> Any:
                return self._step(s, params, qparams, value)

            held = partial(_moved, known[s], -1, 1)
            values.append(jax.lax.cond(start <= s, onward, lambda _, held=held: held(), values[-1]))
        outputs = self._step(len(self.applies) - 1, params, qparams, values[-1])
        return (*values[1:], outputs)

    @staticmethod
    def kept(values: Sequence[Any]) -> tuple[Any, ...]:
        """The values at the cuts and the outputs as `resume` takes them: images with the channels
        last, as XLA computes them on a CPU, so that what is skipped is not transposed."""
        return (*(_moved(value, 1, -1) for value in values[:-1]), values[-1])

    def _step(self, s: int, params: Params, qparams: QParams, value: Any) -> Any:
        """A cut is quantized where it is read, so that its raw value can be kept."""
        end = self.cuts[s] if s < len(self.cuts) else None
        used = {name: q for name, q in qparams.items() if name != end}
        inputs = {self.cuts[s - 1]: value} if s else value
        outputs = self.applies[s](params, used, inputs)
        return outputs if end is None else outputs[end]


def _moved(value: Any, source: int, target: int) -> Any:
    return jnp.moveaxis(value, source, target) if value.ndim >= 4 else value


def segment(graph: Graph, params: Params, at: Collection[str]) -> Segments:
    """Cuts at those of the tensors `at` that alone are alive where they are made.

    Where several follow one another without a branch, the ones no larger than their
    neighbours are taken: thin places, since a cut's value is kept.
    """
    static = static_tensors(graph)
    last: dict[str, int] = {name: len(graph.nodes) for name in graph.outputs}
    for i, node in enumerate(graph.nodes):
        for name in (*node.inputs, *captured(node)):
            if name and name not in static:
                last[name] = max(last.get(name, i), i)
    alive = {name for name in graph.inputs if name in last}
    places: list[tuple[int, str]] = []
    for i, node in enumerate(graph.nodes[:-1]):
        alive.update(name for name in node.outputs if name in last)
        alive = {name for name in alive if last[name] > i}
        if len(alive) == 1 and (cut := next(iter(alive))) in at and cut in node.outputs:
            places.append((i, cut))
    if places:
        shapes = infer_shapes(graph, params)
        sizes = [prod(shapes[cut].shape) for _, cut in places]
        around = [float("inf"), *sizes, float("inf")]
        places = [
            place for k, place in enumerate(places) if sizes[k] <= min(around[k], around[k + 2])
        ]
    return Segments(graph, tuple(cut for _, cut in places), _first(graph, places))


def _first(graph: Graph, places: Sequence[tuple[int, str]]) -> dict[str, int]:
    segments = {cut: s for s, (_, cut) in enumerate(places, start=1)}
    first: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    s = 0
    for i, node in enumerate(graph.nodes):
        for name in (*node.inputs, *captured(node), *node.outputs):
            first.setdefault(name, segments.get(name, s))
        if s < len(places) and i == places[s][0]:
            s += 1
    return first
