"""Fusion groups against what can be read off small graphs."""

import numpy as np
from built import built, node

from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import Chain, fuse, sole_reader, static_tensors
from jqnt.graph.onnx_import import import_onnx

W = np.ones((4, 4, 1, 1))
CHAINS = (
    Chain((("Conv",), ("Relu", "Clip"))),
    Chain((("Conv",),)),
    Chain((("Conv",), ("Relu",), ("Min",))),
    Chain((("Conv",), ("Add",)), joins=True),
)


def graph_of(nodes, outputs=("y",), **params):
    return import_onnx(built(nodes, {"x": ["N", 4, 3, 3]}, list(outputs), {"w": W, **params}))[0]


def groups(nodes, outputs=("y",), chains=CHAINS, **params):
    graph = graph_of(nodes, outputs, **params)
    return [[n.op for n in g.nodes] for g in fuse(graph, chains)]


def test_the_longest_chain_wins():
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Min", "b m", "y")]
    assert groups(nodes, m=np.ones((4, 1, 1))) == [["Conv", "Relu", "Min"]]
    assert groups(nodes, chains=CHAINS[:2], m=np.ones((4, 1, 1))) == [["Conv", "Relu"], ["Min"]]


def test_a_later_node_reads_nothing_but_statics_beside_the_chain():
    nodes = [
        node("Abs", "x", "m"),
        node("Conv", "x w", "a"),
        node("Relu", "a", "b"),
        node("Min", "b m", "y"),
    ]
    assert groups(nodes) == [["Abs"], ["Conv", "Relu"], ["Min"]]


def test_a_join_reads_another_activation_and_comes_after_it():
    nodes = [node("Conv", "x w", "a"), node("Abs", "x", "m"), node("Add", "a m", "y")]
    assert groups(nodes) == [["Abs"], ["Conv", "Add"]]


def test_two_readers_or_an_output_end_a_group():
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "y"), node("Abs", "a", "z")]
    assert groups(nodes, ("y", "z")) == [["Conv"], ["Relu"], ["Abs"]]
    assert groups(nodes[:2], ("y", "a")) == [["Conv"], ["Relu"]]


def test_a_double_read_is_no_sole_reader():
    graph = graph_of([node("Conv", "x w", "a"), node("Mul", "a a", "y")])
    assert sole_reader(graph, "a") is None
    assert sole_reader(graph, "x").op == "Conv"
    assert sole_reader(graph, "y") is None


def test_every_node_is_in_one_group():
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "a w", "b"),
        node("Add", "a b", "c"),
        node("Relu", "c", "y"),
    ]
    assert groups(nodes) == [["Conv"], ["Conv", "Add"], ["Relu"]]


def test_statics_follow_from_params_and_not_from_chance():
    nodes = (
        Node("Transpose", "1", ("w",), ("t",)),
        Node("RandomNormalLike", "2", ("w",), ("r",)),
        Node("Conv", "3", ("x", "t"), ("a",)),
        Node("Conv", "4", ("a", "r"), ("y",)),
    )
    static = static_tensors(Graph("g", nodes, ("x",), ("y",), params=("w",)))
    assert static == {"w", "t"}
