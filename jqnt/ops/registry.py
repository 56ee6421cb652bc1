"""The table of operator lowerings: (domain, operator, opset) -> a function on arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax.core import Tracer

from jqnt.errors import ModelError, UnsupportedError, nearest
from jqnt.graph.ir import Node

__all__ = ["Layout", "Lowering", "find", "lowering", "operators", "static"]

Layout = Literal["onnx", "elementwise", "channels_last"]
"""What a lowering takes and gives: arrays as ONNX lays them out; the same function of each
element (inputs broadcast), so that any common layout will do; or input 0 and output 0 as
(N, spatial..., C) where they have three or more dimensions, everything else as in ONNX."""


@dataclass(frozen=True)
class Lowering:
    """`function(node, *inputs) -> array or tuple of arrays`, valid from opset `since` on.

    Inputs are jax arrays, or numpy arrays where the value is static (constants and shape
    arithmetic); an absent optional input is None. An operator all of whose inputs are numpy
    gives numpy, so that shape arithmetic never enters the trace. `static` are the positions of
    inputs that decide a shape, and so must be concrete; `settings` those of inputs that are
    better concrete, and are if they follow from scalar inputs alone. An `eager` operator has
    an output whose shape depends on data: it needs concrete inputs.

    Where the graph's node holds a body (a `Graph` attribute), the node handed to the lowering
    holds a function instead: `body(*arrays) -> tuple of arrays`, which sees the tensors that the
    body captures.
    """

    function: Callable[..., Any]
    op: str
    domain: str
    since: int
    layout: Layout
    static: tuple[int, ...] = ()
    eager: bool = False
    settings: tuple[int, ...] = ()


_TABLE: dict[tuple[str, str], list[Lowering]] = {}


def lowering(
    op: str,
    *,
    since: int = 1,
    domain: str = "",
    layout: Layout = "onnx",
    static: tuple[int, ...] = (),
    eager: bool = False,
    settings: tuple[int, ...] = (),
):
    """Registers the decorated function for `op` from opset `since` of `domain` on.

    Several decorators on one function, and several `since` for one operator, are the rule;
    the newest one not above the model's opset is used. A second entry for the same triple is
    refused with ValueError.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        entries = _TABLE.setdefault((domain, op), [])
        if any(entry.since == since for entry in entries):
            raise ValueError(f"{domain or 'ai.onnx'}.{op} since {since} is registered twice")
        entries.append(Lowering(function, op, domain, since, layout, static, eager, settings))
        entries.sort(key=lambda entry: entry.since)
        return function

    return register


def find(node: Node) -> Lowering:
    """The newest lowering with since <= the model's opset; UnsupportedError names the nearest."""
    entries = _TABLE.get((node.domain, node.op), [])
    for entry in reversed(entries):
        if entry.since <= node.since:
            return entry
    where = f"{node.domain or 'ai.onnx'} opset {node.since}"
    known = [op for domain, op in _TABLE if domain == node.domain]
    raise UnsupportedError(
        f"operator {node.op} ({where}) of node {node.name!r} is not supported"
        f"{nearest(node.op, known)}"
    )


def operators() -> dict[tuple[str, str], tuple[int, ...]]:
    """(domain, operator) -> the opsets at which its lowerings begin."""
    return {key: tuple(entry.since for entry in entries) for key, entries in _TABLE.items()}


def static(node: Node, what: str, value: Any) -> np.ndarray:
    """`value` as numpy, or ModelError where it is traced but decides a shape."""
    if isinstance(value, Tracer):
        raise ModelError(
            f"{node.op} node {node.name!r}: {what} decides a shape, so it must be a constant or "
            f"a concrete input, but it is computed from data"
        )
    return np.asarray(value)
