"""Small ONNX models, written node by node, and what the reference evaluator makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    """A node named after its first output; "" in `inputs` is written as "-"."""
    read = ["" if name == "-" else name for name in inputs.split()]
    made = outputs.split()
    return helper.make_node(op, read, made, f"n_{made[0]}", **attrs)


def built(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    params: Mapping[str, Any],
    opset: int = 17,
) -> ModelProto:
    """A model of float inputs; `params` become initializers (float64 ones as float32)."""
    arrays = {k: np.asarray(v) for k, v in params.items()}
    arrays = {k: v.astype(np.float32) if v.dtype == float else v for k, v in arrays.items()}
    graph = helper.make_graph(
        list(nodes),
        "built",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def reference(model: ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by onnx's own evaluator."""
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, dict(inputs)), strict=True))
