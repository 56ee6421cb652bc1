"""jqnt: differentiable quantization on JAX, from ONNX to an NPU.

graph, params, encodings = jqnt.import_onnx("model.onnx")
apply = jqnt.lower(graph)                         # apply(params, qparams, inputs, want=...)
plan = jqnt.plan(graph, jqnt.scheme("int4", "uint8"))
theta = jqnt.calibrate(apply, params, plan, batches)
frozen, encodings = jqnt.freeze(graph, params, jqnt.bind(theta, plan))
run = jqnt.integer.lower(graph, frozen, encodings)
seconds = jqnt.npu.latency(workload, encodings, device)
"""

from jqnt import demo, errors, formats, integer, interop, learn, npu, observers, ranges, transforms
from jqnt.choices import with_choices
from jqnt.compare import compare
from jqnt.data import load_data
from jqnt.encodings import Encoding, Encodings
from jqnt.errors import JqntError
from jqnt.formats import BF16, FP16, Granularity, Integer, Minifloat, format_named
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph, Node
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session
from jqnt.graph.shapes import infer_shapes
from jqnt.learn.adaround import adaround
from jqnt.learn.allocate import allocate
from jqnt.learn.calibrate import calibrate
from jqnt.learn.fit import fit
from jqnt.learn.kinds import by_kind
from jqnt.learn.mesh import data_mesh, spread_batches
from jqnt.learn.method import Method
from jqnt.learn.prices import prices
from jqnt.learn.qat import qat
from jqnt.learn.recover import recover
from jqnt.learn.search import search
from jqnt.learn.space import space
from jqnt.learn.train import Watch
from jqnt.learn.trainable import field, named
from jqnt.memory import keep_freed_memory
from jqnt.metrics import evaluator, metric_named
from jqnt.module import Model, QuantConst, QuantParam, load
from jqnt.parametrize import parametrize, settle
from jqnt.placement import plan
from jqnt.plan import Plan, Spec, bind
from jqnt.quantizers import Affine, Cast, Mixture, SoftRound
from jqnt.rules import Rule, first_and_last, scheme
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize
from jqnt.transforms.fold_bn import fold_bn
from jqnt.transforms.fold_bn_to_scale import fold_bn_to_scale

__all__ = [
    "BF16",
    "FP16",
    "Affine",
    "Cast",
    "Encoding",
    "Encodings",
    "Granularity",
    "Graph",
    "Integer",
    "JqntError",
    "Method",
    "Minifloat",
    "Mixture",
    "Model",
    "Node",
    "Plan",
    "QuantConst",
    "QuantParam",
    "Rule",
    "SoftRound",
    "Spec",
    "Watch",
    "adaround",
    "allocate",
    "bind",
    "by_kind",
    "calibrate",
    "cleanup",
    "compare",
    "data_mesh",
    "demo",
    "equalize",
    "errors",
    "evaluator",
    "field",
    "first_and_last",
    "fit",
    "fold_bn",
    "fold_bn_to_scale",
    "format_named",
    "formats",
    "freeze",
    "import_onnx",
    "infer_shapes",
    "integer",
    "interop",
    "keep_freed_memory",
    "learn",
    "load",
    "load_data",
    "lower",
    "metric_named",
    "named",
    "npu",
    "observers",
    "parametrize",
    "plan",
    "prices",
    "qat",
    "ranges",
    "recover",
    "scheme",
    "search",
    "session",
    "settle",
    "space",
    "spread_batches",
    "thaw",
    "transforms",
    "with_choices",
]
