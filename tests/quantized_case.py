"""One operator with random grids: the emulated codes and those of onnxruntime's kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from jqnt.encodings import Encoding, Encodings
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.roles import weight_of
from jqnt.integer import lower as lower_integers
from jqnt.interop.onnx_qop import to_qoperator
from tests.built import built

__all__ = ["S8", "U8", "around", "case", "encoded", "mismatches", "ort_session"]

U8, S8 = Integer(8), Integer(8, signed=True)


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
    weight: Integer = S8,
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
        found[read.tensor] = weight_grid(value, weight, axis)
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


def mismatches(graph, params, encodings, inputs) -> int:
    """How many output values differ between the emulation and onnxruntime's kernels."""
    model = to_qoperator(graph, params, encodings)
    theirs = ort_session(model).run(list(graph.outputs), dict(inputs))
    ours = lower_integers(graph, params, encodings)(inputs)
    return sum(
        int((np.asarray(ours[name]) != value).sum())
        for name, value in zip(graph.outputs, theirs, strict=True)
    )
