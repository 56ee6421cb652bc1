"""Clip as Relu, Max and Min, whose bounds may differ by channel."""

import numpy as np

from jqnt.graph.ir import Graph, Node
from jqnt.transforms.rewrite import fresh
from jqnt.types import Params

__all__ = ["clip_bounds", "scale_bound", "split_clip"]


def clip_bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """(low, high) of a Clip, infinite where absent; None where they are computed."""
    bounds = []
    for index, key, absent in ((1, "min", -np.inf), (2, "max", np.inf)):
        name = node.inputs[index] if len(node.inputs) > index else ""
        if name and name not in graph.constants:
            return None
        bounds.append(float(graph.constants[name]) if name else float(node.attrs.get(key, absent)))
    return bounds[0], bounds[1]


def split_clip(graph: Graph, node: Node, factor: np.ndarray, trailing: int) -> Graph:
    """The Clip `node` with both bounds times `factor` per channel, exactly.

    Relu where the lower bound is 0 and else Max, then Min; the last one keeps the Clip's name
    and output. The bounds are constants of shape (channels, 1, ...) with `trailing` ones.
    """
    bounds = clip_bounds(graph, node)
    assert bounds is not None, "only Clips with constant bounds are split"
    low, high = bounds
    info = graph.info.get(node.inputs[0])
    dtype = np.float32 if info is None else info.dtype
    shape = (-1,) + (1,) * trailing
    steps: list[tuple[str, np.ndarray | None]] = []
    if low == 0:
        steps.append(("Relu", None))
    elif low > -np.inf:
        steps.append(("Max", (low * factor).astype(dtype).reshape(shape)))
    if high < np.inf:
        steps.append(("Min", (high * factor).astype(dtype).reshape(shape)))
    if not steps:
        steps.append(("Identity", None))
    taken, constants, nodes = set(graph.tensors), dict(graph.constants), []
    tensor = node.inputs[0]
    for op, bound in steps:
        last = len(nodes) == len(steps) - 1
        out = node.outputs[0] if last else fresh(f"{node.outputs[0]}_{op.lower()}", taken)
        inputs = (tensor,)
        if bound is not None:
            name = fresh(f"{node.outputs[0]}_{op.lower()}_bound", taken)
            taken.add(name)
            constants[name] = bound
            inputs = (tensor, name)
        taken.add(out)
        name = node.name if last else f"{node.name}/{op}"
        nodes.append(Node(op, name, inputs, (out,), since=node.since))
        tensor = out
    at = next(i for i, n in enumerate(graph.nodes) if n is node)
    return graph.replace(
        nodes=(*graph.nodes[:at], *nodes, *graph.nodes[at + 1 :]), constants=constants
    )


def scale_bound(
    graph: Graph, params: Params, node: Node, factor: np.ndarray
) -> tuple[Graph, Params]:
    """The second input of a Min or Max times `factor` per channel."""
    name = node.inputs[1]
    held = params if name in params else graph.constants
    value = np.asarray(held[name])
    scaled = (value * factor.reshape(value.shape)).astype(value.dtype)
    if name in params:
        return graph, params | {name: scaled}
    return graph.replace(constants={**graph.constants, name: scaled}), params
