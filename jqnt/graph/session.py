"""Runs a graph on arrays: compiled, in as many bits as it needs, in stages where data decide
a shape."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jqnt.errors import ConfigError, DataError, nearest
from jqnt.graph.concrete import shape_inputs
from jqnt.graph.ir import Graph, Node, captured
from jqnt.graph.lower import lower
from jqnt.graph.precision import fits_32_bits, is_wide, needs_64_bits
from jqnt.ops.registry import find
from jqnt.types import Apply

__all__ = ["session"]

_PROGRAMS = 64
"""Programs kept per stage, one for each value of the inputs that decide shapes."""


def session(graph: Graph, params: Mapping[str, Any]) -> Apply:
    """`run(params, qparams, inputs, want=graph.outputs)`: what `lower` gives, compiled.

    There is one program per shape of the inputs, and per value of those that decide a shape
    (`shape_inputs`), which must be concrete. Operators whose output shape depends on data run
    between compiled stages. A graph that needs 64-bit types runs in a scoped x64 context and its
    64-bit outputs are numpy arrays; `params` decide that by their types only.

    `run` may itself be traced (jit, grad, vmap). It raises DataError where values traced in 32
    bits enter a graph that needs 64, and what the function of `lower` raises.
    """
    wide = needs_64_bits(graph, params)
    stages = _stages(graph)
    known = frozenset(graph.tensors)

    def run(
        params: Mapping[str, Any],
        qparams: Mapping[str, Any],
        inputs: Mapping[str, Any],
        want: Iterable[str] = graph.outputs,
    ) -> dict[str, Any]:
        want = tuple(want)
        for name in (*want, *qparams):
            if name not in known:
                raise ConfigError(
                    f"no tensor {name!r} in graph {graph.name!r}{nearest(name, known)}"
                )
        leaves = jax.tree.leaves((dict(params), dict(qparams), dict(inputs)))
        traced = any(isinstance(leaf, Tracer) for leaf in leaves)
        if not wide and all(map(_fits, inputs.values())):
            return _through(stages, params, qparams, inputs, want)
        if traced:
            if not is_wide(jax.dtypes.canonicalize_dtype(np.int64)):
                raise DataError(
                    f"graph {graph.name!r} needs 64-bit types, but values traced in 32 bits enter "
                    f"it: trace it inside `with jax.enable_x64(True):`"
                )
            return _through(stages, params, qparams, inputs, want)
        with jax.enable_x64(True):
            typed = {name: _declared(graph, name, value) for name, value in inputs.items()}
            results = _through(stages, params, qparams, typed, want)
            return {n: np.asarray(v) if is_wide(v.dtype) else v for n, v in results.items()}

    return run


class _Stage(NamedTuple):
    """A piece of the graph and its function; `made` are the tensors that come into being there."""

    graph: Graph
    run: Apply
    made: frozenset[str]


def _through(
    stages: Sequence[_Stage],
    params: Mapping[str, Any],
    qparams: Mapping[str, Any],
    inputs: Mapping[str, Any],
    want: tuple[str, ...],
) -> dict[str, Any]:
    if len(stages) == 1:
        return stages[0].run(params, qparams, inputs, want)
    values = dict(inputs)
    for stage in stages:
        mine = {name: params[name] for name in stage.graph.params if name in params}
        quantizers = {name: q for name, q in qparams.items() if name in stage.made}
        given = {name: values[name] for name in stage.graph.inputs if name in values}
        extra = (name for name in want if name in stage.made)
        wanted = tuple(dict.fromkeys((*stage.graph.outputs, *extra)))
        results = stage.run(mine, quantizers, given, wanted)
        values.update((n, v) for n, v in results.items() if n not in inputs)
    return {name: values[name] for name in want}


def _stages(graph: Graph) -> tuple[_Stage, ...]:
    """The nodes cut before and after each one that must run on concrete values."""
    pieces: list[tuple[bool, list[Node]]] = []
    for node in graph.nodes:
        eager = _is_eager(node)
        if eager or not pieces or pieces[-1][0]:
            pieces.append((eager, []))
        pieces[-1][1].append(node)
    if not any(eager for eager, _ in pieces):
        return (_Stage(graph, _compiled(graph), frozenset(graph.tensors)),)
    stages = []
    known = {*graph.params, *graph.constants}
    later = [set(graph.outputs)]
    for _, nodes in reversed(pieces):
        later.append(later[-1] | {name for node in nodes for name in _reads(node)})
    for i, (eager, nodes) in enumerate(pieces):
        made = [out for node in nodes for out in node.outputs if out]
        read = {name for node in nodes for name in _reads(node)}
        if i == 0:
            # outputs that no node makes
            read |= {name for name in graph.outputs if name not in graph.producer}
        inputs = tuple(name for name in graph.tensors if name in read - known - set(made))
        passed = later[len(pieces) - i - 1]
        first = {*graph.inputs, *graph.params, *graph.constants} & read
        outputs = (*(n for n in made if n in passed), *(n for n in graph.outputs if n in first))
        piece = graph.replace(
            nodes=tuple(nodes),
            inputs=inputs,
            outputs=tuple(dict.fromkeys(outputs)),
            params=tuple(name for name in graph.params if name in read),
            info={n: v for n, v in graph.info.items() if n in graph.inputs},
        )
        run = lower(piece) if eager else _compiled(piece)
        stages.append(_Stage(piece, run, frozenset({*made, *first})))
    return tuple(stages)


def _is_eager(node: Node) -> bool:
    if find(node).eager or any(map(_is_eager, _inner(node))):
        return True
    # a Loop that ends by its data has scan outputs of unknown length
    body = node.attrs.get("body")
    if node.op != "Loop" or not isinstance(body, Graph):
        return False
    if len(node.outputs) <= len(node.inputs) - 2 or len(node.inputs) < 2 or not node.inputs[1]:
        return False
    name = body.outputs[0]
    while (maker := body.producer.get(name)) is not None and maker.op == "Identity":
        name = maker.inputs[0]
    return maker is not None


def _inner(node: Node) -> Iterator[Node]:
    for body in node.attrs.values():
        if isinstance(body, Graph):
            yield from body.nodes


def _reads(node: Node) -> tuple[str, ...]:
    return tuple(name for name in (*node.inputs, *captured(node)) if name)


def _compiled(graph: Graph) -> Apply:
    """The lowered graph under `jax.jit`, the inputs that decide a shape as part of the program."""
    apply = lower(graph)
    static = shape_inputs(graph)
    programs: OrderedDict[Any, Callable[..., dict[str, Any]]] = OrderedDict()

    def run(
        params: Mapping[str, Any],
        qparams: Mapping[str, Any],
        inputs: Mapping[str, Any],
        want: Iterable[str] = graph.outputs,
    ) -> dict[str, Any]:
        want = tuple(want)
        fixed = {
            name: np.asarray(inputs[name])
            for name in static
            if name in inputs and not isinstance(inputs[name], Tracer)
        }
        key = (want, *((n, v.dtype.str, v.shape, v.tobytes()) for n, v in fixed.items()))
        if key not in programs:

            def program(params: Any, qparams: Any, moving: Any) -> dict[str, Any]:
                return apply(params, qparams, {**moving, **fixed}, want)

            programs[key] = jax.jit(program)
            if len(programs) > _PROGRAMS:
                programs.popitem(last=False)
        programs.move_to_end(key)
        moving = {name: value for name, value in inputs.items() if name not in fixed}
        return programs[key](dict(params), dict(qparams), moving)

    return run


def _fits(value: Any) -> bool:
    return isinstance(value, Tracer) or fits_32_bits(value)


def _declared(graph: Graph, name: str, value: Any) -> Any:
    """A concrete input in the 64-bit type that the graph declares; others as they are."""
    info = graph.info.get(name)
    if info is None or not is_wide(info.dtype):
        return value
    array, wanted = np.asarray(value), np.dtype(info.dtype)
    same = array.dtype.kind == wanted.kind or {array.dtype.kind, wanted.kind} == {"i", "u"}
    return array.astype(wanted) if same else array
