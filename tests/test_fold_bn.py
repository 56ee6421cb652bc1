"""Folding keeps the function, for every operator, group and kind of bias."""

import numpy as np
import pytest
from built import built, node, reference
from onnxruntime import InferenceSession

from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.transforms.fold_bn import fold_bn

RNG = np.random.default_rng(0)


def statistics(channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}s": RNG.uniform(0.5, 2, channels),
        f"{prefix}b": RNG.normal(size=channels),
        f"{prefix}m": RNG.normal(size=channels),
        f"{prefix}v": RNG.uniform(0.1, 3, channels),
    }


def folded(model, shape):
    graph, params, _ = import_onnx(model)
    graph, params = fold_bn(graph, params)
    x = {"x": RNG.normal(size=shape).astype(np.float32)}
    found = lower(graph)(params, {}, x)
    for name, value in expected(model, x).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    return graph, params


def expected(model, x):
    """By onnx's evaluator; by onnxruntime where the former fails: a grouped ConvTranspose."""
    if not any(n.op_type == "ConvTranspose" for n in model.graph.node):
        return reference(model, x)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, x), strict=True))


CASES = {
    "conv": ("Conv", (6, 4, 3, 3), {}, 6),
    "conv grouped": ("Conv", (6, 2, 3, 3), {"group": 2}, 6),
    "depthwise": ("Conv", (4, 1, 3, 3), {"group": 4}, 4),
    "transposed": ("ConvTranspose", (4, 5, 3, 3), {"strides": [2, 2]}, 5),
    "transposed grouped": ("ConvTranspose", (4, 3, 3, 3), {"group": 2}, 6),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_convolutions(case, bias):
    op, shape, attrs, channels = CASES[case]
    params = {"l.weight": RNG.normal(size=shape), **statistics(channels)}
    if bias:
        params["l.bias"] = RNG.normal(size=channels)
    names = "x l.weight l.bias" if bias else "x l.weight"
    model = built(
        [
            node(op, names, "c", **attrs),
            node("BatchNormalization", "c s b m v", "y", epsilon=0.01),
        ],
        {"x": ["N", 4, 5, 5]},
        ["y"],
        params,
    )
    graph, params = folded(model, (2, 4, 5, 5))
    assert [n.op for n in graph.nodes] == [op]
    assert set(params) == {"l.weight", "l.bias"}
    assert params["l.weight"].dtype == np.float32


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_its_factors(trans):
    shape = (5, 4) if trans else (4, 5)
    model = built(
        [
            node("Gemm", "x w c", "g", transB=trans, alpha=0.7, beta=1.3),
            node("BatchNormalization", "g s b m v", "y"),
        ],
        {"x": ["N", 4]},
        ["y"],
        {"w": RNG.normal(size=shape), "c": RNG.normal(size=5), **statistics(5)},
    )
    graph, params = folded(model, (3, 4))
    assert [n.op for n in graph.nodes] == ["Gemm"] and set(params) == {"w", "c"}


def test_a_shared_weight_is_copied_and_a_shared_bias_too():
    nodes = []
    for i in "12":
        nodes.append(node("Conv", "x w c", f"c{i}"))
        nodes.append(node("BatchNormalization", f"c{i} {i}s {i}b {i}m {i}v", f"y{i}"))
    params = {"w": RNG.normal(size=(4, 4, 1, 1)), "c": RNG.normal(size=4)}
    model = built(
        [*nodes, node("Add", "y1 y2", "y")],
        {"x": ["N", 4, 3, 3]},
        ["y"],
        params | statistics(4, "1") | statistics(4, "2"),
    )
    graph, params = folded(model, (2, 4, 3, 3))
    assert [n.op for n in graph.nodes] == ["Conv", "Conv", "Add"]
    assert len(params) == 4


@pytest.mark.parametrize("why", ["second reader", "graph output", "no weight", "computed bias"])
def test_what_cannot_be_folded_stays(why):
    params = {"w": RNG.normal(size=(4, 4, 1, 1)), **statistics(4)}
    first = node("Conv", "x w", "c")
    extra, outputs = [], ["y"]
    if why == "second reader":
        extra, outputs = [node("Relu", "c", "z")], ["y", "z"]
    if why == "graph output":
        outputs = ["y", "c"]
    if why == "no weight":
        first = node("Relu", "x", "c")
        params.pop("w")
    if why == "computed bias":
        first = node("Conv", "x w bias", "c")
        params["axes"] = np.asarray([0, 2, 3])
        extra = []
    nodes = [first, node("BatchNormalization", "c s b m v", "y"), *extra]
    if why == "computed bias":
        nodes.insert(0, node("ReduceMean", "x", "bias", axes=[0, 2, 3], keepdims=0))
    graph, _ = folded(built(nodes, {"x": ["N", 4, 3, 3]}, outputs, params), (2, 4, 3, 3))
    assert "BatchNormalization" in [n.op for n in graph.nodes]
