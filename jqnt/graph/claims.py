"""What a node claims, checked before anything is computed: its arity, attributes and memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.core import Tracer

from jqnt.errors import ModelError
from jqnt.graph.ir import Graph, Node
from jqnt.ops.registry import find

__all__ = ["check_arity", "check_inlining", "check_memory", "check_result", "check_total"]

_MUCH = 2**29
"""Bytes that a node may always allocate."""

_GROWTH = 1024
"""Beyond that, how many times more than its inputs hold: a small file claims no gigabytes."""

_MOST_NODES = 2**18
"""Nodes that functions may be inlined to; a few lines that call each other twice make billions."""

_GROWING = frozenset(
    {
        "CenterCropPad",
        "Col2Im",
        "ConvTranspose",
        "Expand",
        "MaxUnpool",
        "OneHot",
        "Pad",
        "Resize",
        "Tile",
        "Upsample",
    }
)
"""Operators that a few numbers can make produce any amount."""

_COUNTED = frozenset({"BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"})
"""Operators whose first operands, at most two, are the size of the result."""

_TYPE = onnx.defs.OpSchema.AttrType
_KINDS = {
    _TYPE.FLOAT: float, _TYPE.INT: int, _TYPE.STRING: str, _TYPE.TENSOR: np.ndarray,
    _TYPE.GRAPH: Graph, _TYPE.SPARSE_TENSOR: np.ndarray, _TYPE.FLOATS: tuple, _TYPE.INTS: tuple,
    _TYPE.STRINGS: tuple, _TYPE.TENSORS: tuple,
}  # fmt: skip


def check_arity(node: Node) -> None:
    """Numbers of inputs and outputs, required attributes and their kinds, by ONNX's schemas.

    Operators without a schema pass. Raises ModelError that names the node.
    """
    try:
        schema = onnx.defs.get_schema(node.op, node.since, node.domain)
    except onnx.defs.SchemaError:
        return
    where = f"{node.op} node {node.name!r}"
    for what, names, low, high, slots in (
        ("inputs", node.inputs, schema.min_input, schema.max_input, schema.inputs),
        ("outputs", node.outputs, schema.min_output, schema.max_output, schema.outputs),
    ):
        if not low <= len(names) <= high:
            span = str(low) if low == high else f"{low} to {high}"
            raise ModelError(f"{where} has {len(names)} {what}, the operator has {span}")
        for name, slot in zip(names, slots, strict=False):
            if not name and slot.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                raise ModelError(f"{where} lacks {what[:-1]} {slot.name!r}")
    for key, attribute in schema.attributes.items():
        if key not in node.attrs:
            if attribute.required:
                raise ModelError(f"{where} lacks the attribute {key!r}")
            continue
        kind = _KINDS.get(attribute.type)
        if kind is not None and not isinstance(node.attrs[key], kind):
            raise ModelError(
                f"{where}: attribute {key!r} is no {kind.__name__}: {node.attrs[key]!r:.60}"
            )


def check_memory(
    function: Callable[..., Any], node: Node, arrays: Sequence[Any], held: int | None
) -> None:
    """Before a node is computed; ModelError where its result would be absurdly large.

    The operators whose operands' values or attributes decide a size are evaluated abstractly,
    as is any other that could multiply its operands' sizes. `held` counts the elements of all
    that the caller started from; None stands for the operands'.
    """
    sizes = [math.prod(map(float, np.shape(a))) for a in arrays if a is not None]
    claimed = 0.0
    if node.op == "EyeLike":
        claimed = sizes[0] ** 2 if np.ndim(arrays[0]) == 1 else sizes[0]
    elif node.op == "Range" and all(isinstance(a, np.ndarray) and a.size == 1 for a in arrays):
        start, limit, step = (float(a.reshape(())) for a in arrays)
        claimed = (limit - start) / step if step else 0.0
    elif node.op in _COUNTED and all(isinstance(a, np.ndarray) and a.size == 1 for a in arrays):
        claimed = math.prod(float(a.reshape(())) for a in arrays[:2])
    elif node.op in _GROWING or (
        math.prod(sizes) > _MUCH and not any(isinstance(a, Tracer) for a in arrays)
    ):
        claimed = _abstract_size(function, node, arrays)
    _refuse(node, claimed * 4, arrays, held)


def check_inlining(proto: onnx.ModelProto) -> None:
    """Before functions are inlined; ModelError where their nodes would be absurdly many."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    counts: dict[tuple[str, str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in functions and key not in counts:
                counts[key] = 0  # a cycle is the inliner's to refuse
                counts[key] = count(functions[key].node)
            total += counts.get(key, 1)
            total += sum(count(attribute.g.node) for attribute in node.attribute)
        return total

    if (total := count(proto.graph.node)) > _MOST_NODES:
        raise ModelError(
            f"the model's functions claim {total:.3g} nodes once inlined, the limit is "
            f"{_MOST_NODES}"
        )


def check_total(node: Node, elements: int, held: int) -> None:
    """The sum of what import has computed up to a node, against what the file holds, in elements.

    A chain of nodes doubles its tensor again and again, no one of them beyond reason.
    """
    if 4 * elements > max(2 * _MUCH, 4 * held * _GROWTH):
        raise ModelError(
            f"{node.op} node {node.name!r} and those before it make {elements / 2**28:.1f} GiB of "
            f"constants from {held / 2**18:.3f} MiB"
        )


def check_result(
    node: Node, results: Sequence[Any], arrays: Sequence[Any], held: int | None
) -> None:
    """After a node is traced and before anything runs; ModelError if its result is absurd."""
    total = 0.0
    for result in results:
        whole = not isinstance(result, np.ndarray) or any(result.strides)
        total += math.prod(map(float, np.shape(result))) * 4 if whole else 0
    _refuse(node, total, arrays, held)


def _abstract_size(function: Callable[..., Any], node: Node, arrays: Sequence[Any]) -> float:
    """Elements of the results, without computing them; 0 where the node fails anyway."""
    concrete = find(node).static
    kept = [
        a if a is None or (i in concrete and isinstance(a, np.ndarray)) else None
        for i, a in enumerate(arrays)
    ]
    moving = [
        None
        if a is None or k is not None
        else jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype))
        for a, k in zip(arrays, kept, strict=True)
    ]

    def run(moving: list[Any]) -> Any:
        return function(node, *(k if m is None else m for k, m in zip(kept, moving, strict=True)))

    try:
        results = jax.tree.leaves(jax.eval_shape(run, moving))
    except Exception:
        # whatever is wrong with the node, computing it will say so
        return 0.0
    return sum(math.prod(map(float, r.shape)) for r in results)


def _refuse(node: Node, claimed: float, arrays: Sequence[Any], held: int | None) -> None:
    if claimed <= _MUCH:
        return
    operands = sum(math.prod(map(float, np.shape(a))) for a in arrays if a is not None)
    source = operands if held is None else held
    if claimed > _GROWTH * 4 * source:
        raise ModelError(
            f"{node.op} node {node.name!r} claims {claimed / 2**30:.1f} GiB from "
            f"{source / 2**18:.3f} MiB that the model and its inputs hold"
        )
