"""One operator with random grids: the emulated codes and those of onnxruntime's kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.roles import weight_of
from jqnt.integer import lower as lower_integers
from jqnt.interop.onnx_qop import to_qoperator
from tests.built import built

__all__ = ["S8", "U8", "WEIGHT", "around", "case", "encoded", "mismatches", "ort_session"]

U8, S8 = Integer(8), Integer(8, signed=True)


def _pairs_saturate() -> bool:
    """Whether onnxruntime clips the sum of two uint8 x int8 products to 16 bits here, as it does
    on processors with AVX2 and without VNNI: no arithmetic that anybody would want emulated."""
    values = [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 32])]
    values.append(helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1]))
    weight = helper.make_tensor("b", TensorProto.INT8, [32, 1], [127] * 32)
    nodes = [helper.make_node("MatMulInteger", ["a", "b"], ["y"])]
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    (found,) = ort_session(model).run(None, {"a": np.full((1, 32), 255, np.uint8)})
    return int(found[0, 0]) != 32 * 255 * 127


def around(values: np.ndarray, fmt: Integer, rng: np.random.Generator) -> Encoding:
    """A grid that covers most of `values`, with a zero point of its own making."""
    low, high = np.quantile(values, [0.01, 0.99])
    low, high = min(low, 0.0) - 1e-3, max(high, 0.0) + 1e-3
    qmin, qmax = fmt.limits
    scale = np.float32((high - low) / (qmax - qmin) * rng.uniform(0.9, 1.1))
    return Encoding(fmt, scale, np.int64(np.clip(round(qmin - low / scale), qmin, qmax)))


def weight_grid(weight: np.ndarray, fmt: Integer, axis: int | None) -> Encoding:
    """Symmetric, by the largest magnitude."""
    axes = tuple(i for i in range(weight.ndim) if i != axis)
    top = np.abs(weight).max(axis=None if axis is None else axes)
    scale = np.asarray(np.maximum(top, 1e-6) / fmt.limits[1], np.float32)
    granularity = PER_TENSOR if axis is None else Granularity(axis)
    return Encoding(fmt, scale, np.zeros(scale.shape, np.int64), granularity)


def encoded(
    graph: Graph,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    tensors: Sequence[str],
    *,
    activation: Integer = U8,
    weight: Integer | None = None,
    per_channel: bool = True,
    seed: int = 0,
) -> Encodings:
    """Grids for the inputs, `tensors`, every weight and every bias."""
    rng = np.random.default_rng(seed)
    values = jax.jit(lambda x: lower(graph)(params, {}, x, want=tuple(tensors)))(inputs)
    found = {name: around(inputs[name], activation, rng) for name in graph.inputs}
    for name in tensors:
        found[name] = around(np.asarray(values[name]), activation, rng)
    for node in graph.nodes:
        read = weight_of(node, set(params))
        if read is None:
            continue
        value = np.asarray(params[read.tensor])
        axis = read.channel_axis % value.ndim if per_channel else None
        found[read.tensor] = weight_grid(value, weight or WEIGHT, axis)
        if read.bias and read.data in found:
            scale = found[read.data].scale * found[read.tensor].scale
            zeros = np.zeros(scale.shape, np.int64)
            granularity = Granularity(0) if scale.ndim else PER_TENSOR
            found[read.bias] = Encoding(Integer(32, signed=True), scale, zeros, granularity)
    return Encodings(found)


def case(nodes, inputs, outputs, params, opset: int = 17) -> tuple[Graph, dict[str, Any]]:
    """(graph, params) of a float model of these nodes."""
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    graph, params, _ = import_onnx(built(nodes, shapes, outputs, params, opset))
    return graph, params


def ort_session(model: ModelProto, optimized: bool = True) -> ort.InferenceSession:
    """One thread; all of onnxruntime's graph optimizations, or none."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


WEIGHT = Integer(7 if _pairs_saturate() else 8, signed=True)
"""Weights whose products onnxruntime's kernels add exactly on this machine."""


def mismatches(graph, params, encodings, inputs) -> int:
    """How many output values differ between the emulation and onnxruntime's kernels."""
    model = to_qoperator(graph, params, encodings)
    theirs = ort_session(model).run(list(graph.outputs), dict(inputs))
    ours = lower_integers(graph, params, encodings)(inputs)
    return sum(
        int((np.asarray(ours[name]) != value).sum())
        for name, value in zip(graph.outputs, theirs, strict=True)
    )
