"""Cleanup keeps the function and the outer names, and leaves nothing that computes nothing."""

import numpy as np
from built import built, node, reference

from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.transforms.cleanup import cleanup

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(2, 4)).astype(np.float32)}


def cleaned(model):
    graph, params, _ = import_onnx(model)
    graph, params = cleanup(graph, params)
    expected = reference(model, X)
    found = lower(graph)(params, {}, X)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6)
    assert set(params) == set(graph.params)
    return graph, params


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def test_copies_and_dead_nodes_go_and_outputs_keep_their_names():
    graph, _ = cleaned(
        built(
            [
                node("Identity", "x", "a"),
                node("Relu", "a", "b"),
                node("Dropout", "b", "c"),
                node("Exp", "c", "dead"),
                node("Add", "c unused", "alsodead"),
                node("Neg", "c", "d"),
                node("Identity", "d", "y"),
            ],
            {"x": ["N", 4]},
            ["y"],
            {"unused": RNG.normal(size=4)},
        )
    )
    assert ops(graph) == ["Relu", "Neg"]
    assert graph.params == () and graph.outputs == ("y",)


def test_a_copy_of_an_input_and_of_another_output_stays():
    graph, _ = cleaned(
        built(
            [node("Identity", "x", "y"), node("Relu", "x", "z"), node("Identity", "z", "w")],
            {"x": ["N", 4]},
            ["y", "z", "w"],
            {},
        )
    )
    assert ops(graph) == ["Identity", "Relu", "Identity"]


def test_a_training_dropout_stays():
    model = built(
        [node("Dropout", "x ratio training", "y")],
        {"x": ["N", 4]},
        ["y"],
        {"ratio": np.float32(0.5), "training": np.asarray(True)},
    )
    graph, params, _ = import_onnx(model)
    graph, _ = cleanup(graph, params)
    assert ops(graph) == ["Dropout"]


def test_names_are_handed_on_into_control_flow_bodies():
    """The captured copy is read under its source's name inside the branch."""
    from onnx import TensorProto, helper

    def branch(name, op):
        made = helper.make_node(op, ["a"], [f"{name}_out"], f"n_{name}")
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([made], name, [], [info])

    model = built(
        [
            node("Relu", "x", "r"),
            node("Identity", "r", "a"),
            node("If", "flag", "y", then_branch=branch("t", "Neg"), else_branch=branch("e", "Exp")),
        ],
        {"x": ["N", 4]},
        ["y"],
        {"flag": np.asarray(True)},
    )
    graph, _ = cleaned(model)
    assert "Identity" not in ops(graph)


def test_equal_constants_become_one():
    graph, _ = cleaned(
        built(
            [node("Clip", "x lo hi", "a"), node("Neg", "a", "b"), node("Clip", "b lo2 hi2", "y")],
            {"x": ["N", 4]},
            ["y"],
            {
                "lo": np.float32(-1),
                "hi": np.float32(0.5),
                "lo2": np.float32(-1),
                "hi2": np.float32(0.25),
            },
        )
    )
    assert len(graph.constants) == 3


def test_gemm_factors_move_into_weight_and_bias():
    graph, _ = cleaned(
        built(
            [node("Gemm", "x w c", "y", alpha=0.5, beta=3.0, transB=1)],
            {"x": ["N", 4]},
            ["y"],
            {"w": RNG.normal(size=(3, 4)), "c": RNG.normal(size=3)},
        )
    )
    assert {graph.nodes[0].attrs.get(k, 1.0) for k in ("alpha", "beta")} == {1.0}


def test_a_weight_with_two_readers_keeps_its_gemm_factor():
    graph, _ = cleaned(
        built(
            [
                node("Gemm", "x w", "a", alpha=0.5),
                node("Gemm", "x w", "b"),
                node("Add", "a b", "y"),
            ],
            {"x": ["N", 4]},
            ["y"],
            {"w": RNG.normal(size=(4, 3))},
        )
    )
    assert graph.nodes[0].attrs["alpha"] == 0.5


def test_a_bias_of_two_layers_becomes_two():
    graph, params = cleaned(
        built(
            [
                node("Gemm", "x w1 c", "a"),
                node("Gemm", "a w2 c", "y"),
            ],
            {"x": ["N", 4]},
            ["y"],
            {"w1": RNG.normal(size=(4, 4)), "w2": RNG.normal(size=(4, 4)), "c": RNG.normal(size=4)},
        )
    )
    first, second = (n.inputs[2] for n in graph.nodes)
    assert first != second
    np.testing.assert_array_equal(params[first], params[second])
