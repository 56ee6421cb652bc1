"""The graph: immutable nodes in ONNX's vocabulary, one namespace of tensor names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jqnt.errors import ConfigError, nearest

__all__ = ["Graph", "Node", "TensorInfo"]


@dataclass(frozen=True, eq=False)
class Node:
    """One operator application, as in an ONNX NodeProto.

    `inputs` may hold "" for an absent optional input. `attrs` holds Python numbers, strings,
    tuples of them, numpy arrays, and `Graph` for control-flow bodies. `since` is the version of
    the operator set of `domain` that the model imports: lowerings dispatch on it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    since: int = 1

    def replace(self, **changes: Any) -> "Node":
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class TensorInfo:
    """Element type and shape; a dimension is an int, a symbol's name, or None if unknown.

    `shape` is None where not even the rank is known.
    """

    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in topological order between named tensors.

    `params` names the float constants that live outside, in a `Params` dict (ONNX names);
    `constants` holds all others (integers, shapes, scalar bounds) as numpy. `info` knows the
    types and symbolic shapes of inputs, and of other tensors as far as they could be inferred.
    Graphs hash and compare by identity, so that they can be static arguments of `jax.jit`.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    info: Mapping[str, TensorInfo] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)

    def replace(self, **changes: Any) -> "Graph":
        """A copy with some fields changed."""
        return replace(self, **changes)

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """Tensor name -> the node that makes it; inputs, params and constants have none."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """Tensor name -> the nodes that read it, in order; a node that reads twice is there once.

        A node with control-flow bodies reads what its bodies capture from outside.
        """
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *captured(node))):
                if name:
                    found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor name: inputs, params, constants, then outputs of nodes in order."""
        made = (out for node in self.nodes for out in node.outputs if out)
        return tuple(dict.fromkeys((*self.inputs, *self.params, *self.constants, *made)))

    def check(self, name: str) -> str:
        """Returns `name`, or raises ConfigError with the nearest names if no tensor has it."""
        if name not in set(self.tensors):
            raise ConfigError(
                f"no tensor {name!r} in graph {self.name!r}{nearest(name, self.tensors)}"
            )
        return name


def captured(node: Node) -> tuple[str, ...]:
    """The outer tensors that a node's control-flow bodies read."""
    names: dict[str, None] = {}
    for body in (a for a in node.attrs.values() if isinstance(a, Graph)):
        own = set(body.tensors)
        for inner in body.nodes:
            names.update(dict.fromkeys(n for n in (*inner.inputs, *captured(inner)) if n))
        names.update(dict.fromkeys(body.outputs))
        for name in own:
            names.pop(name, None)
    return tuple(names)
