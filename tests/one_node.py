"""Models of one node, run by jqnt and by onnxruntime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session

IR = 10


def typed(name: str, array: np.ndarray) -> Any:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def model(
    op: str,
    inputs: Mapping[str, np.ndarray | None],
    outputs: Sequence[tuple[str, int]],
    opset: int,
    constants: Sequence[str] = (),
    domain: str = "",
    **attrs: Any,
) -> ModelProto:
    """One node; an input that is None is absent, those in `constants` are initializers.

    `outputs` are (name, element type), of unknown shape.
    """
    given = {k: v for k, v in inputs.items() if v is not None}
    node = helper.make_node(
        op,
        [k if v is not None else "" for k, v in inputs.items()],
        [name for name, _ in outputs],
        name="the_node",
        domain=domain,
        **attrs,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [typed(k, v) for k, v in given.items() if k not in constants],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(given[k], k) for k in constants],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR)


def floats(*names: str) -> list[tuple[str, int]]:
    return [(name, TensorProto.FLOAT) for name in names]


def run_ort(proto: ModelProto, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    found = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return found.run(None, {i.name: inputs[i.name] for i in found.get_inputs()})


def run_jqnt(proto: ModelProto, inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """Through `session`: compiled, in the bits that the graph needs."""
    graph, params, _ = import_onnx(proto)
    run = session(graph, params)
    results = run(params, {}, {name: inputs[name] for name in graph.inputs})
    return [np.asarray(results[name]) for name in graph.outputs]


def run_eagerly(proto: ModelProto, inputs: Mapping[str, Any]) -> list[Any]:
    """Through `lower`, operator by operator."""
    graph, params, _ = import_onnx(proto)
    results = lower(graph)(params, {}, {name: inputs[name] for name in graph.inputs})
    return [results[name] for name in graph.outputs]


def agree(proto: ModelProto, inputs: Mapping[str, Any], rtol=1e-5, atol=1e-6) -> None:
    """jqnt and onnxruntime give the same values and types."""
    for ours, theirs in zip(run_jqnt(proto, inputs), run_ort(proto, inputs), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
