"""A small residual network with choices, calibrated and priced: what the search tests share."""

from functools import cache
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.learn.prices import Prices, menu_of, prices
from jqnt.placement import plan
from jqnt.plan import Plan, Theta


class Case(NamedTuple):
    """Everything that a search space is made of."""

    graph: Graph
    params: dict[str, np.ndarray]
    plan: Plan
    theta: Theta
    prices: Prices
    batches: list[dict[str, np.ndarray]]


@cache
def case(
    device: str = "embedded-demo",
    kinds: tuple[str, ...] = ("latency_s",),
    menu: tuple[tuple[str, str], ...] = (),
) -> Case:
    """The pairs of `menu`, or all of the device's, on this network:

    x -> Conv -> Relu -> [Conv -> Relu -> Conv] + -> Relu -> Conv -> Relu -> pool -> Gemm
    """
    rng = np.random.default_rng(0)
    pads = [1, 1, 1, 1]
    shapes = {"wa": (8, 3, 3, 3), "wb": (8, 8, 3, 3), "wc": (8, 8, 1, 1), "wd": (16, 8, 3, 3)}
    weights = {n: rng.normal(size=s) / np.sqrt(np.prod(s[1:])) for n, s in shapes.items()}
    weights |= {"wg": rng.normal(size=(10, 16)), "bg": rng.normal(size=10)}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], "conv_a", pads=pads),
        helper.make_node("Relu", ["a"], ["ra"], "relu_a"),
        helper.make_node("Conv", ["ra", "wb"], ["b"], "conv_b", pads=pads),
        helper.make_node("Relu", ["b"], ["rb"], "relu_b"),
        helper.make_node("Conv", ["rb", "wc"], ["c"], "conv_c"),
        helper.make_node("Add", ["c", "ra"], ["s"], "add"),
        helper.make_node("Relu", ["s"], ["rs"], "relu_s"),
        helper.make_node("Conv", ["rs", "wd"], ["d"], "conv_d", pads=pads, strides=[2, 2]),
        helper.make_node("Relu", ["d"], ["rd"], "relu_d"),
        helper.make_node("GlobalAveragePool", ["rd"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "wg", "bg"], ["y"], "fc", transB=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "searched",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
            [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    graph, params, _ = import_onnx(model)
    profile = npu.device(device)
    searched = with_choices(plan(graph), graph, menu or menu_of(profile))
    batches = [
        {
            "x": rng.normal(size=(16, 3, 8, 8)).astype(np.float32),
            "labels": rng.integers(10, size=16),
        }
        for _ in range(2)
    ]
    theta = calibrate(lower(graph), params, searched, [{"x": b["x"]} for b in batches])
    priced = prices(searched, npu.workload(graph, params), profile, kinds)
    return Case(graph, params, searched, theta, priced, batches)
