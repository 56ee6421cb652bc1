"""Graph and params back to an ONNX model; the parts that every ONNX exporter builds from."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from jqnt.errors import DataError, UnsupportedError, nearest
from jqnt.graph.ir import Graph, Node, TensorInfo

__all__ = ["initializer", "model_of", "node_proto", "to_onnx", "value_info"]

_LIMIT = 2**31
"""A protobuf message holds less than this many bytes."""


def to_onnx(graph: Graph, params: Mapping[str, Any]) -> onnx.ModelProto:
    """The float model: every param and constant an initializer, every name as in the graph.

    Raises DataError for a missing parameter; the result passes onnx.checker.
    """
    tensors = [initializer(name, _param(params, name)) for name in graph.params]
    tensors += [initializer(name, value) for name, value in graph.constants.items()]
    model = model_of(graph, [node_proto(node) for node in graph.nodes], tensors, graph.opsets)
    if not all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        inferred = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
    onnx.checker.check_model(model)
    return model


def model_of(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    opsets: Mapping[str, int],
) -> onnx.ModelProto:
    """A model with the graph's inputs and outputs around other nodes and initializers.

    Raises UnsupportedError where it would exceed 2 GB.
    """
    if sum(tensor.ByteSize() for tensor in tensors) >= _LIMIT:
        raise UnsupportedError(f"graph {graph.name!r}: more than 2 GB of weights in one ONNX file")
    proto = helper.make_graph(
        list(nodes),
        graph.name,
        [value_info(name, graph.info.get(name)) for name in graph.inputs],
        [value_info(name, graph.info.get(name)) for name in graph.outputs],
        list(tensors),
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    standard = [i for i in imports if i.domain in ("", "ai.onnx", "ai.onnx.ml")]
    return helper.make_model(
        proto,
        producer_name="jqnt",
        producer_version=metadata.version("jqnt"),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(standard, ignore_unknown=True),
    )


def node_proto(node: Node) -> onnx.NodeProto:
    """The NodeProto of a node, its bodies included."""
    proto = helper.make_node(
        node.op, list(node.inputs), list(node.outputs), name=node.name, domain=node.domain
    )
    proto.attribute.extend(_attribute(node, key, value) for key, value in node.attrs.items())
    return proto


def initializer(name: str, value: Any) -> onnx.TensorProto:
    """A TensorProto of a numpy array (ml_dtypes' types included)."""
    return numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)


def value_info(name: str, info: TensorInfo | None) -> onnx.ValueInfoProto:
    """Type and shape of a tensor as far as they are known; float where the type is not."""
    dtype = np.dtype(np.float32) if info is None else info.dtype
    shape = None if info is None or info.shape is None else list(info.shape)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _param(params: Mapping[str, Any], name: str) -> Any:
    if name not in params:
        raise DataError(f"no value for parameter {name!r}{nearest(name, params)}")
    return params[name]


def _attribute(node: Node, key: str, value: Any) -> AttributeProto:
    if isinstance(value, Graph):
        body = helper.make_graph(
            [node_proto(inner) for inner in value.nodes],
            value.name or node.name,
            [value_info(name, value.info.get(name)) for name in value.inputs],
            [value_info(name, value.info.get(name)) for name in value.outputs],
        )
        return helper.make_attribute(key, body)
    if isinstance(value, np.ndarray):
        return helper.make_attribute(key, numpy_helper.from_array(value))
    if isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
        return helper.make_attribute(key, [numpy_helper.from_array(v) for v in value])
    if isinstance(value, tuple):
        return helper.make_attribute(key, list(value), attr_type=_declared(node, key, value))
    return helper.make_attribute(key, value)


def _declared(node: Node, key: str, value: tuple[Any, ...]) -> int | None:
    """The type of an empty list, which only the operator's schema knows."""
    if value:
        return None
    schema = onnx.defs.get_schema(node.op, node.since, node.domain)
    return int(getattr(schema.attributes[key].type, "value"))  # noqa: B009  (untyped enum)
