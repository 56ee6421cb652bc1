"""Graph -> ONNX: the same function with the same names."""

import numpy as np
import onnx
import pytest

from jqnt.errors import DataError
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.to_onnx import to_onnx
from tests.built import built, node
from tests.quantized_case import ort_session

MODELS = ["cifar10_resnet20", "digits_mbv2_bn", "imagenet_mobilenetv1_025", "ultraface_rfb320"]


@pytest.mark.parametrize("name", MODELS)
def test_real_models_come_back(data, name):
    path = data / "models" / f"{name}.onnx"
    graph, params, _ = import_onnx(path)
    model = to_onnx(graph, params)
    shape = [d if isinstance(d, int) else 2 for d in graph.info[graph.inputs[0]].shape]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inputs = {graph.inputs[0]: image}
    before = ort_session(onnx.load(path)).run(list(graph.outputs), inputs)
    after = ort_session(model).run(list(graph.outputs), inputs)
    for first, second in zip(before, after, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5 * np.abs(first).max())


def test_a_second_import_is_the_same_graph():
    nodes = [node("Conv", "x w b", "c", pads=[1] * 4), node("Clip", "c low -", "y")]
    params = {"w": np.ones((2, 3, 3, 3)), "b": np.zeros(2), "low": np.float32(-1)}
    graph, values, _ = import_onnx(built(nodes, {"x": ["N", 3, 4, 4]}, ["y"], params))
    again, second, _ = import_onnx(to_onnx(graph, values))
    assert [(n.op, n.name, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op, n.name, n.inputs, n.outputs) for n in again.nodes
    ]
    assert [dict(n.attrs) for n in graph.nodes] == [dict(n.attrs) for n in again.nodes]
    assert values.keys() == second.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, second[name])


def test_a_missing_parameter_is_named():
    graph, values, _ = import_onnx(
        built([node("MatMul", "x w", "y")], {"x": ["N", 3]}, ["y"], {"w": np.ones((3, 2))})
    )
    with pytest.raises(DataError, match="no value for parameter 'w'"):
        to_onnx(graph, {key: value for key, value in values.items() if key != "w"})
