"""Batch normalization that trains: by the moments of the batch, with moving averages."""

from collections.abc import Mapping
from dataclasses import dataclass

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.transforms.rewrite import fresh
from jqnt.types import Params

__all__ = ["Moving", "batch_statistics", "statistics"]


@dataclass(frozen=True)
class Moving:
    """A graph that normalizes by batch moments; `updates` maps a statistic's param to the tensor
    that holds its next value."""

    graph: Graph
    updates: Mapping[str, str]


def statistics(graph: Graph, params: Params) -> tuple[str, ...]:
    """The params that hold moving means and variances: no optimizer should move them."""
    return tuple(
        name
        for node in graph.nodes
        if node.op == "BatchNormalization" and not node.domain
        for name in node.inputs[3:5]
        if name in params
    )


def batch_statistics(graph: Graph, params: Params, momentum: float = 0.9) -> Moving:
    """Every BatchNormalization in training mode: the batch's mean and (biased) variance.

        next = momentum * moving + (1 - momentum) * of the batch

    Raises ConfigError if the graph has none whose statistics are params: it was folded.
    """
    taken = {*graph.tensors}
    updates: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        if node.op != "BatchNormalization" or node.domain or node.inputs[3] not in params:
            nodes.append(node)
            continue
        names = []
        for name in node.inputs[3:5]:
            new = fresh(f"{name}_next", taken)
            taken.add(new)
            updates[name] = new
            names.append(new)
        attrs = {**node.attrs, "training_mode": 1, "momentum": momentum}
        nodes.append(node.replace(outputs=(node.outputs[0], *names), attrs=attrs))
    if not updates:
        raise ConfigError(
            f"graph {graph.name!r} has no batch normalization with its own statistics: import the "
            f"model without folding it"
        )
    return Moving(graph.replace(nodes=tuple(nodes)), updates)
