"""Workloads of real and weight-free graphs: counts, fusion groups, layouts, liveness, unions."""

import csv

import numpy as np
import pytest
from test_npu import chain

from jqnt.graph.ir import Graph, Node, TensorInfo
from jqnt.graph.onnx_import import import_onnx
from jqnt.npu import device, latency, workload
from jqnt.npu.geometry import Image, channel_axes, image
from jqnt.npu.union import union


def graph_of(nodes, shapes, params=(), outputs=None):
    """A graph from (op, inputs, output, attrs) with declared shapes."""
    made = [
        Node(op, f"n{i}", tuple(inputs), (output,), attrs, since=17)
        for i, (op, inputs, output, attrs) in enumerate(nodes)
    ]
    info = {name: TensorInfo(np.dtype(np.float32), shape) for name, shape in shapes.items()}
    known = {out for node in made for out in node.outputs} | set(params)
    inputs = tuple(dict.fromkeys(n for node in made for n in node.inputs if n not in known))
    weights = {name: np.zeros(shapes[name], np.float32) for name in params}
    outputs = outputs or (made[-1].outputs[0],)
    return Graph("g", tuple(made), inputs, outputs, tuple(params), {}, info), weights


def test_counts_agree_with_the_published_table(data):
    table = csv.DictReader((data / "npu" / "models.csv").read_text().splitlines())
    for row in table:
        graph, params, _ = import_onnx(data / "npu" / row["file"])
        work = workload(graph, params)
        assert float(work.dims.macs.sum(dtype=np.float64)) == pytest.approx(
            int(row["macs"]), rel=1e-6
        )
        stored = work.weight_elements.sum(dtype=np.float64) + work.bias_elements.sum()
        assert stored == pytest.approx(int(row["parameters"]), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "group", "count"),
    [
        ("resnet18", ("Conv", "Add", "Relu"), 8),
        ("mobilenet_v2", ("Conv", "Clip"), 35),
        ("mobilenet_v3_small", ("Conv", "HardSigmoid"), 9),
        ("convnext_tiny", ("MatMul", "Bias", "Gelu"), 18),
        ("densenet121", ("BatchNormalization", "Relu"), 62),
        ("vit", ("MatMul", "Bias", "Add"), 12),
    ],
)
def test_operators_are_fused_as_devices_do(data, model, group, count):
    graph, params, _ = import_onnx(data / "npu" / "graphs" / f"{model}.onnx")
    work = workload(graph, params)
    found = [
        (op, *(name for name, _ in tail)) for op, tail in zip(work.ops, work.tails, strict=True)
    ]
    assert found.count(group) == count
    nodes = [name for names in work.nodes for name in names]
    assert len(nodes) == len(set(nodes))


def test_channels_first_becomes_images_and_transposes_of_layout_are_free():
    assert image((2, 3, 4, 5), 1) == Image(2, 4, 5, 3)
    assert image((2, 4, 5, 3), -1) == Image(2, 4, 5, 3)
    shapes = {"x": (1, 8, 4, 4), "w": (8, 8, 1, 1), "c": (1, 8, 4, 4), "t": (1, 4, 4, 8),
              "s": (1, 8, 4, 4), "y": (1, 4, 8, 4)}  # fmt: skip
    nodes = [
        ("Conv", ("x", "w"), "c", {}),
        ("Transpose", ("c",), "t", {"perm": (0, 2, 3, 1)}),
        ("Transpose", ("t",), "s", {"perm": (0, 3, 1, 2)}),
        ("Transpose", ("s",), "y", {"perm": (0, 2, 1, 3)}),
    ]
    graph, params = graph_of(nodes, shapes, ("w",))
    axes = channel_axes(graph, shapes, frozenset(("w",)))
    assert (axes["c"], axes["t"], axes["s"]) == (1, 3, 1)
    work = workload(graph, params)
    assert work.ops == ("Conv",)  # the three transposes keep rows and columns in order


def test_a_residual_with_two_readers_is_not_swallowed():
    shapes = dict.fromkeys(("x", "a", "r", "b", "s", "y"), (1, 8, 4, 4)) | {"w": (8, 8, 1, 1)}
    nodes = [
        ("Conv", ("x", "w"), "a", {}),
        ("Relu", ("a",), "r", {}),
        ("Conv", ("r", "w"), "b", {}),
        ("Add", ("b", "r"), "s", {}),
        ("Relu", ("s",), "y", {}),
    ]
    graph, params = graph_of(nodes, shapes, ("w",))
    work = workload(graph, params)
    assert work.nodes == (("n0", "n1"), ("n2", "n3", "n4"))
    assert work.edges == ((-1, 0), (0, 1), (0, 1), (1, -1))
    size = 8 * 16
    np.testing.assert_array_equal(work.live_elements, [2 * size, 2 * size])


def test_functions_of_several_nodes_are_one_lookup():
    shapes = dict.fromkeys(("x", "h", "s", "y"), (1, 4, 16)) | {"w": (16, 16)}
    nodes = [
        ("MatMul", ("x", "w"), "h", {}),
        ("Sigmoid", ("h",), "s", {}),
        ("Mul", ("h", "s"), "y", {}),
    ]
    graph, params = graph_of(nodes, shapes, ("w",))
    work = workload(graph, params)
    assert work.tails == ((("Swish", "lookup"),),)


def test_a_layer_normalization_written_out_is_one_group():
    line, column = (1, 4, 16), (1, 4, 1)
    shapes = {"x": line, "m": column, "d": line, "q": line, "v": column, "e": column,
              "r": column, "n": line, "g": (16,), "y": line}  # fmt: skip
    nodes = [
        ("ReduceMean", ("x",), "m", {"axes": (-1,)}),
        ("Sub", ("x", "m"), "d", {}),
        ("Mul", ("d", "d"), "q", {}),
        ("ReduceMean", ("q",), "v", {"axes": (-1,)}),
        ("Add", ("v", "eps"), "e", {}),
        ("Sqrt", ("e",), "r", {}),
        ("Div", ("d", "r"), "n", {}),
        ("Mul", ("n", "g"), "y", {}),
    ]
    graph, params = graph_of(nodes, {**shapes, "eps": (1,)}, ("g", "eps"))
    work = workload(graph, params)
    assert work.ops == ("LayerNormalization",)
    assert len(work.nodes[0]) == len(nodes)


def test_the_union_prices_each_network_as_alone():
    target = device("snapdragon-8-gen-3")
    works = [workload(*chain([(c, 3, 1, 1), (c, 1, 1, 1)])) for c in (16, 40)]
    both = union(works)
    alone = sum(float(latency(w, "w8a8", target)) for w in works)
    together = float(latency(both, "w8a8", target)) + float(target.graph_s)
    assert together == pytest.approx(alone, rel=1e-6)
    assert both.edges == ((-1, 0), (0, 1), (1, -1), (-1, 2), (2, 3), (3, -1))
