"""Does a graph need 64-bit arithmetic? jax computes in 32 bits unless told otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from jqnt.graph.concrete import shape_inputs
from jqnt.graph.ir import Graph, Node, captured

__all__ = ["fits_32_bits", "is_wide", "needs_64_bits"]

_MOVES = frozenset(
    {
        "Clip", "Compress", "Concat", "Dropout", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "Max", "Min", "Pad", "ReduceMax", "ReduceMin", "Reshape",
        "ReverseSequence", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu",
        "Unique", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose results are among the values of their inputs."""

_JUDGES = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"}
)
"""Operators that give truth values."""

_COUNTS: Mapping[str, int] = {
    "ArgMax": 0,
    "ArgMin": 0,
    "MaxPool": 1,
    "NonMaxSuppression": 0,
    "NonZero": 0,
    "TopK": 1,
    "Unique": 1,
}
"""Operator -> the output from which on it gives positions: int64, but they fit 32 bits."""

_BY_POSITION = frozenset({"Gather", "GatherElements", "GatherND", "ReverseSequence", "Compress"})
"""Operators whose first input is moved and whose second is a position."""

_OF_SHAPES = frozenset({"EyeLike", "Shape", "Size"})
"""Operators that read a shape only."""


def is_wide(dtype: Any) -> bool:
    """Is it a type that jax narrows to 32 bits?"""
    dtype = np.dtype(dtype)
    return dtype.itemsize == (16 if dtype.kind == "c" else 8) and dtype.kind in "iufc"


def fits_32_bits(value: Any) -> bool:
    """Can a concrete array be narrowed without loss, as far as its integers go?"""
    # only 64-bit integers are looked at: others need not leave the device
    kind = np.dtype(getattr(value, "dtype", np.int64))
    if kind.kind not in "iu" or kind.itemsize < 8 or not np.size(value):
        return True
    limits = np.iinfo(np.int32 if kind.kind == "i" else np.uint32)
    return bool(limits.min <= np.min(value) and np.max(value) <= limits.max)


def needs_64_bits(graph: Graph, params: Mapping[str, Any]) -> bool:
    """True where narrowing to 32 bits would change a result or its type.

    False for a graph whose only 64-bit tensors are static, or int64 values that come in, are
    moved, compared, used as positions or cast to a narrower type, and never reach arithmetic or
    an output: those may run in 32 bits as long as the values fit.
    """
    for name in graph.outputs:
        info = graph.info.get(name)
        if info is not None and is_wide(info.dtype):
            return True
    decided = set(shape_inputs(graph))
    static = {*graph.constants, *decided}
    wide = set()
    for name in graph.inputs:
        info = graph.info.get(name)
        if info is not None and is_wide(info.dtype) and name not in decided:
            if np.dtype(info.dtype).kind in "fc":
                return True
            wide.add(name)
    if any(is_wide(v.dtype) for n, v in params.items() if n in graph.params):
        return True
    if not _narrow(_live(graph), graph, static, wide):
        return True
    return not wide.isdisjoint(graph.outputs)


def _live(graph: Graph) -> list[Node]:
    """The nodes that an output depends on."""
    needed = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(node.inputs, captured(node))
    return nodes[::-1]


def _narrow(nodes: Sequence[Node], graph: Graph, static: set[str], wide: set[str]) -> bool:
    """Walks the nodes, extending `static` and `wide`; False where 64-bit values are computed."""
    small = {
        name
        for name in graph.inputs
        if name in graph.info and np.dtype(graph.info[name].dtype).kind in "biu"
    }
    for node in nodes:
        outputs = [out for out in node.outputs if out]
        reads = [name for name in node.inputs if name]
        bodies = [v for v in node.attrs.values() if isinstance(v, Graph)]
        if bodies:
            if not wide.isdisjoint(reads):
                return False
            for body in bodies:
                if not _narrow(body.nodes, graph, static, wide):
                    return False
                if not wide.isdisjoint(body.outputs):
                    return False
            continue
        if node.op in _OF_SHAPES or static.issuperset(reads):
            static.update(outputs)
            continue
        constants = [graph.constants[name] for name in reads if name in graph.constants]
        if any(is_wide(c.dtype) and np.dtype(c.dtype).kind in "fc" for c in constants):
            return False
        if node.op in _JUDGES:
            small.update(outputs)
            if not all(map(fits_32_bits, constants)) and not wide.isdisjoint(reads):
                return False
        elif node.op in ("Cast", "BitCast"):
            dtype = helper.tensor_dtype_to_np_dtype(node.attrs["to"])
            if not is_wide(dtype):
                small.update(outputs if np.dtype(dtype).kind in "biu" else ())
            elif node.op == "BitCast" or np.dtype(dtype).kind != "i":
                return False
            elif reads[0] in small or reads[0] in wide:
                wide.update(outputs)
            else:
                # a float may be beyond 32 bits
                return False
        elif node.op in _COUNTS:
            if not wide.isdisjoint(reads) and node.op in _MOVES:
                wide.update(outputs[:1])
            wide.update(outputs[_COUNTS[node.op] :])
        elif not wide.isdisjoint(reads):
            if node.domain or node.op not in _MOVES | {"OneHot"}:
                return False
            moved = (
                reads[:1]
                if node.op in _BY_POSITION
                else reads[2:]
                if node.op == "OneHot"
                else reads
            )
            if not wide.isdisjoint(moved):
                if not all(map(fits_32_bits, constants)) and node.op not in ("Slice", "Split"):
                    return False
                wide.update(outputs)
    return True
