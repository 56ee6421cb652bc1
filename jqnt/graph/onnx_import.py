"""ONNX -> (Graph, params, encodings): the door at which a model file is checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto

from jqnt.encodings import Encodings
from jqnt.errors import ModelError, UnsupportedError, nearest
from jqnt.graph.claims import check_arity, check_inlining
from jqnt.graph.fold import fold, split
from jqnt.graph.ir import Graph, Node, TensorInfo
from jqnt.graph.onnx_tensor import info_of, read_attribute, read_tensor
from jqnt.graph.qdq import lift_encodings
from jqnt.ops.registry import find

__all__ = ["import_onnx"]


def import_onnx(
    model: str | Path | bytes | onnx.ModelProto,
    qdq: Literal["encodings", "nodes"] = "encodings",
) -> tuple[Graph, dict[str, Any], Encodings]:
    """(graph, params, encodings) of a model: a path, its bytes, or the parsed proto.

    `params` are the float tensors of rank one or more that the model holds, by ONNX name, in
    numpy as stored; integers, scalars and what operators treat as settings are the graph's
    constants. What depends on constants only is computed here. Complete pairs of QuantizeLinear
    and DequantizeLinear become `encodings` at their tensors (see `lift_encodings`), or stay with
    qdq="nodes"; `encodings` is empty for a float model.

    Raises ModelError for a file that is broken, and UnsupportedError, which names every operator
    at fault, for one that asks for more than jqnt has.
    """
    proto, folder = _parse(model)
    opsets = _opsets(proto)
    if proto.functions:
        proto = _inline(proto)
    reader = _Reader(opsets, folder, {}, {}, set(), set())
    graph = _read_graph(proto.graph, reader, {}, "")
    graph = graph.replace(name=proto.graph.name or "graph", info=reader.info, opsets=opsets)
    _check_supported(graph)
    graph, tensors = fold(graph, reader.tensors)
    encodings = Encodings()
    if qdq == "encodings":
        graph, tensors, encodings = lift_encodings(graph, tensors)
    graph, params = split(graph, tensors, frozenset(reader.weights))
    return graph, params, encodings


class _Reader(NamedTuple):
    """What reading a graph and its bodies shares; the last four fill up."""

    opsets: Mapping[str, int]
    folder: Path | None
    tensors: dict[str, np.ndarray]
    info: dict[str, TensorInfo]
    node_names: set[str]
    weights: set[str]


def _parse(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        return model, None
    folder = None
    if isinstance(model, bytes):
        source, content = "the given bytes", model
    else:
        path = Path(model)
        source, folder = str(path), path.parent
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise ModelError(f"{source}: truncated, or not an ONNX model") from None
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{source}: not an ONNX model, or one without a graph and its outputs")
    _check_text(proto, source)
    return proto, folder


def _check_text(message: Message, source: str) -> None:
    """protobuf hands over names that are no UTF-8 as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(f"{source}: the {field.name} {text[:40]!r} is no UTF-8 text")
        elif field.type == field.TYPE_MESSAGE:
            for inner in (value,) if isinstance(value, Message) else value:
                _check_text(inner, source)


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version < 1:
            raise ModelError(f"opset {entry.version} of domain {domain or 'ai.onnx'} is no opset")
        opsets[domain] = entry.version
    newest = onnx.defs.onnx_opset_version()
    if opsets.setdefault("", 1) > newest:
        raise UnsupportedError(
            f"the model uses opset {opsets['']}, the newest known is {newest}; export it at "
            f"opset {newest} or below"
        )
    return opsets


def _inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import inliner

    check_inlining(proto)
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        # The inliner reports through several kinds, RuntimeError among them.
        raise ModelError(f"the model's functions cannot be inlined: {_line(error)}") from error


def _read_graph(
    proto: onnx.GraphProto, reader: _Reader, outer: Mapping[str, str], prefix: str
) -> Graph:
    """A graph or body; `outer` maps the names visible from outside to their full names."""
    names = dict(outer)
    made: set[str] = set()

    def define(name: str, what: str) -> str:
        if not name:
            raise ModelError(f"{what} has no name")
        if name in made:
            raise ModelError(f"tensor {prefix + name!r} is made twice, the second time by {what}")
        made.add(name)
        names[name] = prefix + name
        return prefix + name

    for tensor in proto.initializer:
        full = define(tensor.name, "an initializer")
        reader.tensors[full] = read_tensor(tensor, reader.folder, f"initializer {full!r}")
        reader.weights.add(full)
    for sparse in proto.sparse_initializer:
        full = define(sparse.values.name, "a sparse initializer")
        attribute = AttributeProto(type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
        reader.tensors[full] = read_attribute(
            attribute, reader.folder, f"sparse initializer {full!r}"
        )
        reader.weights.add(full)
    inputs = []
    for value in proto.input:
        if value.name not in made:
            inputs.append(define(value.name, "a graph input"))
    nodes = _sorted(proto, names, made, prefix)
    for node in nodes:
        for out in node.output:
            if out:
                define(out, f"{node.op_type} node {node.name!r}")
    for value in (*proto.input, *proto.value_info, *proto.output):
        if value.name in made and (info := info_of(value)) is not None:
            reader.info.setdefault(prefix + value.name, info)
    read = [_read_node(node, reader, names, prefix) for node in nodes]
    outputs = []
    for value in proto.output:
        if value.name not in names:
            raise ModelError(
                f"output {prefix + value.name!r} is made by no node{nearest(value.name, names)}"
            )
        outputs.append(names[value.name])
    return Graph(prefix, tuple(n for n in read if n), tuple(inputs), tuple(outputs))


def _sorted(
    proto: onnx.GraphProto, outer: Mapping[str, str], made: set[str], prefix: str
) -> list[onnx.NodeProto]:
    """The nodes in topological order: as in the file, where that is one."""
    makers = {out for node in proto.node for out in node.output if out}
    known = {*outer, *made}
    order, waiting = [], list(proto.node)
    needs = {id(node): _reads(node) for node in waiting}
    for node in waiting:
        for name in needs[id(node)]:
            if name not in known and name not in makers:
                raise ModelError(
                    f"{node.op_type} node {node.name!r} reads tensor {prefix + name!r}, which "
                    f"nothing makes{nearest(name, known | makers)}"
                )
    while waiting:
        later = []
        for node in waiting:
            if all(name in known for name in needs[id(node)]):
                order.append(node)
                known.update(out for out in node.output if out)
            else:
                later.append(node)
        if len(later) == len(waiting):
            names = ", ".join(repr(n.name or n.op_type) for n in later[:8])
            raise ModelError(f"the graph has a cycle through nodes {names}")
        waiting = later
    return order


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the captures of its bodies included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            body = attribute.g
            own = {v.name for v in (*body.input, *body.initializer)}
            own.update(s.values.name for s in body.sparse_initializer)
            own.update(out for inner in body.node for out in inner.output)
            for inner in body.node:
                names |= _reads(inner) - own
            names |= {v.name for v in body.output} - own
    return names


def _read_node(
    proto: onnx.NodeProto, reader: _Reader, names: Mapping[str, str], prefix: str
) -> Node | None:
    """The node; None for a Constant, whose value goes among the tensors."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    label = prefix + (proto.name or next((o for o in proto.output if o), proto.op_type))
    where = f"{proto.op_type} node {label!r}"
    if domain not in reader.opsets:
        raise ModelError(f"{where} is of domain {domain!r}, whose opset the model does not import")
    name, count = label, 1
    while name in reader.node_names:
        name, count = f"{label}_{count}", count + 1
    reader.node_names.add(name)
    attrs: dict[str, Any] = {}
    for attribute in proto.attribute:
        key = attribute.name
        if key in attrs:
            raise ModelError(f"{where} has the attribute {key!r} twice")
        if attribute.type == AttributeProto.GRAPH:
            attrs[key] = _read_graph(attribute.g, reader, names, f"{name}/{key}/")
        elif attribute.ref_attr_name:
            raise ModelError(f"{where}: attribute {key!r} refers to a function's parameter")
        else:
            attrs[key] = read_attribute(attribute, reader.folder, f"attribute {key!r} of {where}")
    if proto.op_type == "Constant" and not domain:
        if len(attrs) != 1 or len(proto.output) != 1:
            raise ModelError(f"{where} must have one value and one output")
        reader.tensors[names[proto.output[0]]] = _constant(attrs, where)
        return None
    node = Node(
        op=proto.op_type,
        name=name,
        inputs=tuple(names[i] if i else "" for i in proto.input),
        outputs=tuple(names[o] if o else "" for o in proto.output),
        attrs=attrs,
        domain=domain,
        since=reader.opsets[domain],
    )
    check_arity(node)
    return node


def _constant(attrs: Mapping[str, Any], where: str) -> np.ndarray:
    ((key, value),) = attrs.items()
    if key in ("value", "sparse_value") and isinstance(value, np.ndarray):
        return value
    if key in ("value_float", "value_floats") and not isinstance(value, str | Graph):
        return np.asarray(value, np.float32)
    if key in ("value_int", "value_ints") and not isinstance(value, str | Graph):
        return np.asarray(value, np.int64)
    raise UnsupportedError(f"{where} holds {key!r}; only numbers are supported")


def _check_supported(graph: Graph) -> None:
    """One error for all operators without a lowering."""
    faults: dict[str, list[str]] = {}
    hints: dict[str, str] = {}

    def visit(nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            try:
                find(node)
            except UnsupportedError as error:
                kind = f"{node.domain or 'ai.onnx'}.{node.op} (opset {node.since})"
                faults.setdefault(kind, []).append(node.name)
                hints.setdefault(kind, str(error).partition("not supported")[2])
            for body in node.attrs.values():
                if isinstance(body, Graph):
                    visit(body.nodes)

    visit(graph.nodes)
    if faults:
        kinds = []
        for kind, nodes in faults.items():
            more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
            listed = ", ".join(repr(n) for n in nodes[:4])
            kinds.append(f"{kind}{hints[kind]} in node {listed}{more}")
        raise UnsupportedError(f"operators that are not supported: {'; '.join(kinds)}")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
