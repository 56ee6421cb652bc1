"""QuantizeLinear/DequantizeLinear pairs of a graph -> encodings at their tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, ModelError
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph, Node

__all__ = ["lift_encodings"]


def lift_encodings(
    graph: Graph, tensors: Mapping[str, np.ndarray]
) -> tuple[Graph, dict[str, np.ndarray], Encodings]:
    """(graph, tensors, encodings) with the complete pairs lifted out of the nodes.

    - A DequantizeLinear of integers that the file holds becomes a float tensor, (code -
      zero_point) * scale, under the name of its output; codes that float32 loses are kept.
    - QuantizeLinear, then DequantizeLinear with the same scale: the readers read the tensor
      itself, which carries the encoding. Where someone reads that tensor unquantized too (a
      graph output, another grid), the pair becomes an Identity whose output carries it.

    Nodes without partner, with scales that are computed or in formats other than integers stay.
    Raises ModelError for a scale that is not positive and finite.
    """
    known = dict(tensors)
    found: dict[str, Encoding] = {}
    codes: dict[str, np.ndarray] = {}
    replaced: dict[str, Node | None] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if _is(node, "DequantizeLinear") and node.inputs[0] in known:
            encoding = _encoding(node, known)
            values = known[node.inputs[0]]
            if encoding is None or _format(values.dtype) is None:
                continue
            _check_shape(node, encoding, values.shape)
            name = node.outputs[0]
            found[name] = encoding
            whole = values.astype(np.int64)
            known[name] = encoding.dequantize(whole)
            if not np.array_equal(encoding.quantize(known[name]), whole):
                codes[name] = whole
            replaced[node.name] = None
        elif _is(node, "QuantizeLinear"):
            _lift_pair(graph, node, known, found, replaced, renamed)
    nodes = []
    for node in graph.nodes:
        kept = replaced.get(node.name, node)
        if kept is not None:
            inputs = tuple(renamed.get(name, name) for name in kept.inputs)
            nodes.append(kept.replace(inputs=inputs, attrs=_rewired(kept, renamed)))
    return graph.replace(nodes=tuple(nodes)), known, Encodings(found, codes)


def _lift_pair(
    graph: Graph,
    node: Node,
    known: Mapping[str, np.ndarray],
    found: dict[str, Encoding],
    replaced: dict[str, Node | None],
    renamed: dict[str, str],
) -> None:
    """A QuantizeLinear all of whose readers dequantize on its grid."""
    encoding = _encoding(node, known)
    readers = graph.readers.get(node.outputs[0], ())
    if encoding is None or not readers or node.outputs[0] in graph.outputs:
        return
    for reader in readers:
        if not _is(reader, "DequantizeLinear") or reader.inputs[0] != node.outputs[0]:
            return
        other = _encoding(reader, known)
        if other is None or not encoding.same_grid(other):
            return
    source = node.inputs[0]
    rivals = [r for r in graph.readers.get(source, ()) if r.name != node.name]
    alone = source not in graph.outputs and source not in renamed
    alone = alone and (source not in found or found[source].same_grid(encoding))
    for rival in rivals:
        grid = _encoding(rival, known) if _is(rival, "QuantizeLinear") else None
        alone = alone and grid is not None and grid.same_grid(encoding)
    replaced[node.name] = None
    for reader in readers:
        out = reader.outputs[0]
        if alone and out not in graph.outputs:
            found[source] = encoding
            replaced[reader.name] = None
            renamed[out] = source
        elif alone:
            found[source] = encoding
            replaced[reader.name] = _identity(reader, source)
        else:
            found[out] = encoding
            replaced[reader.name] = _identity(reader, source)


def _identity(node: Node, source: str) -> Node:
    return node.replace(op="Identity", inputs=(source,), attrs={})


def _is(node: Node, op: str) -> bool:
    return node.op == op and node.domain in ("", "com.microsoft")


def _encoding(node: Node, known: Mapping[str, np.ndarray]) -> Encoding | None:
    """The grid of a Q or DQ node; None where it is computed or no integer one."""
    source, scale_name, zero_name = (*node.inputs, "", "", "")[:3]
    scale = known.get(scale_name)
    if scale is None or scale.dtype != np.float32:
        return None
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(f"{node.op} node {node.name!r}: scale {scale_name!r} is not positive")
    zero: Any = None
    if zero_name:
        zero = known.get(zero_name)
        if zero is None:
            return None
        dtype = zero.dtype
    elif _is(node, "DequantizeLinear"):
        if source not in known:
            return None
        dtype = known[source].dtype
    else:
        dtype = np.dtype(np.uint8)
        if node.attrs.get("output_dtype", 2) != 2:
            return None
    fmt = _format(dtype)
    if fmt is None:
        return None
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    granularity = PER_TENSOR
    block = node.attrs.get("block_size", 0)
    if scale.ndim and (scale.size > 1 or block):
        granularity = Granularity(node.attrs.get("axis", 1), block or None)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    try:
        return Encoding(fmt, scale, zero, granularity)
    except DataError as error:
        raise ModelError(f"{node.op} node {node.name!r}: {error}") from None


def _check_shape(node: Node, encoding: Encoding, shape: tuple[int, ...]) -> None:
    """ModelError where the scales do not lie on an axis of the tensor."""
    axis, scale = encoding.granularity.axis, np.shape(encoding.scale)
    assert not isinstance(axis, tuple)  # ONNX has none
    fits = axis is None or -len(shape) <= axis < len(shape) or len(shape) == 1
    if fits and axis is not None:
        fits = scale == encoding.granularity.scale_shape(shape)
    if not fits:
        raise ModelError(
            f"{node.op} node {node.name!r}: scales of shape {list(scale)} on axis {axis} do not "
            f"fit a tensor of shape {list(shape)}"
        )


def _format(dtype: np.dtype) -> Integer | None:
    """int8, uint4 and so on; None for a type that is no integer."""
    name = np.dtype(dtype).name
    kind, _, bits = name.partition("int")
    if kind not in ("", "u") or not bits.isdigit() or int(bits) > 32:
        return None
    return Integer(int(bits), signed=not kind)


def _rewired(node: Node, renamed: Mapping[str, str]) -> Mapping[str, Any]:
    """Bodies read renamed tensors under their new names."""
    bodies = {k: v for k, v in node.attrs.items() if isinstance(v, Graph)}
    if not bodies or not renamed:
        return node.attrs

    def rewire(body: Graph) -> Graph:
        nodes = tuple(
            inner.replace(
                inputs=tuple(renamed.get(n, n) for n in inner.inputs),
                attrs=_rewired(inner, renamed),
            )
            for inner in body.nodes
        )
        outputs = tuple(renamed.get(n, n) for n in body.outputs)
        return body.replace(nodes=nodes, outputs=outputs)

    return {**node.attrs, **{k: rewire(v) for k, v in bodies.items()}}
