"""How much each layer errs by itself: float inputs, its own quantizers, its output compared."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Graph, Node
from jqnt.graph.lower import lower, run_node
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import Weight, weight_of
from jqnt.learn.quality import Quality, tensor_quality
from jqnt.types import Params, QParams

__all__ = ["layer_quality"]


def layer_quality(
    graph: Graph, params: Params, qparams: QParams, batches: Iterable[Mapping[str, Any]]
) -> dict[str, Quality]:
    """Node -> the nearness of f(q_x(x), q_w(w)) to f(x, w), x from the float network.

    f is each node that multiplies an activation with a weight, both in the quantizers that
    `qparams` has for them; biases stay float. Errors of earlier layers play no part, so what the
    worst layer loses is what leaving it in float wins.

    Raises UnsupportedError for a graph without such layers, DataError for no batches.
    """
    static = static_tensors(graph)
    layers = [
        (node, weight)
        for node in graph.nodes
        if (weight := weight_of(node, static)) is not None and weight.data not in static
    ]
    if not layers:
        raise UnsupportedError(f"graph {graph.name!r} has no convolution or matrix product")
    outputs = [node.outputs[0] for node, _ in layers]
    apply = lower(graph)
    fixed = sorted({n for node, _ in layers for n in node.inputs if n in static})
    kept = {name: q for name, q in qparams.items() if name in static}
    exact = apply(params, {}, {}, want=fixed)
    coarse = {**exact, **_weights(layers, apply(params, kept, {}, want=fixed))}

    @jax.jit
    def reference(inputs: dict[str, Any]) -> Mapping[str, Any]:
        return apply(params, {}, inputs, want=outputs)

    @jax.jit
    def alone(inputs: dict[str, Any]) -> Mapping[str, Any]:
        data = sorted({weight.data for _, weight in layers})
        seen = apply(params, {}, inputs, want=data)
        seen = {name: qparams[name](x) if name in qparams else x for name, x in seen.items()}
        given = {**coarse, **seen}
        return {
            node.outputs[0]: run_node(node, tuple(given[n] if n else None for n in node.inputs))[0]
            for node, _ in layers
        }

    batches = ({name: batch[name] for name in graph.inputs} for batch in batches)
    found = tensor_quality(reference, alone, outputs, batches)
    return {node.name: found[node.outputs[0]] for node, _ in layers}


def _weights(layers: list[tuple[Node, Weight]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The weights among `values`, without biases."""
    return {weight.tensor: values[weight.tensor] for _, weight in layers}
