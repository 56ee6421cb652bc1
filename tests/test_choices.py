"""The search space against what can be read off small graphs."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from jqnt.choices import with_choices
from jqnt.errors import ConfigError
from jqnt.formats import Integer, format_named
from jqnt.graph.onnx_import import import_onnx
from jqnt.placement import plan

RNG = np.random.default_rng(0)
MENU = [("int4", "uint8"), ("int8", "uint8"), ("int8", "uint16"), ("float16", "float16")]


@pytest.fixture(scope="module")
def graph():
    """x -> Conv a -> Relu -> Conv b -> Add (with Relu's output) -> Flatten -> Gemm c."""
    weights = {
        "wa": (4, 3, 3, 3),
        "wb": (4, 4, 3, 3),
        "wc": (10, 4 * 8 * 8),
    }
    pads = [1, 1, 1, 1]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "wa"], ["a"], "conv_a", pads=pads),
                helper.make_node("Relu", ["a"], ["r"], "relu"),
                helper.make_node("Conv", ["r", "wb"], ["b"], "conv_b", pads=pads),
                helper.make_node("Add", ["b", "r"], ["s"], "add"),
                helper.make_node("Flatten", ["s"], ["f"], "flatten"),
                helper.make_node("Gemm", ["f", "wc"], ["y"], "fc", transB=1),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
            [
                numpy_helper.from_array(RNG.normal(size=s).astype(np.float32), n)
                for n, s in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    return import_onnx(model)[0]


def test_what_meets_in_an_add_is_one_choice(graph):
    choices = with_choices(plan(graph), graph, MENU).choices
    assert {name: set(c.tensors) for name, c in choices.items()} == {
        "x": {"x", "wa"},
        "r": {"r", "b", "wb"},
        "s": {"s", "wc"},
    }


def test_options_keep_sign_symmetry_and_granularity(graph):
    base = plan(graph)
    choice = with_choices(base, graph, MENU).choices["x"]
    formats = [
        tuple(o[choice.tensors.index(t)].format.name for t in ("wa", "x")) for o in choice.options
    ]
    assert formats == [
        ("int4", "uint8"),
        ("int8", "uint8"),
        ("int8", "uint16"),
        ("float16", "float16"),
    ]
    for option in choice.options:
        for tensor, spec in zip(choice.tensors, option, strict=True):
            before = base.specs[tensor]
            assert (spec.granularity, spec.symmetric, spec.role) == (
                before.granularity,
                before.symmetric,
                before.role,
            )


def test_what_the_target_forbids_is_left_out(graph):
    base = plan(graph, target="qnn-htp")
    menu = [("int3", "uint8"), ("int8", "uint8")]
    choices = with_choices(base, graph, menu, target="qnn-htp").choices
    assert {len(c.options) for c in choices.values()} == {1}


def test_an_excluded_node_keeps_its_group(graph):
    base = plan(graph)
    searched = with_choices(base, graph, MENU, exclude=["fc"])
    assert set(searched.choices) == {"x", "r"}
    assert searched.specs == base.specs and searched.tied == base.tied


@pytest.mark.parametrize(
    ("menu", "exclude", "message"),
    [
        ([], (), "no pair"),
        (MENU, ("conv_z",), "did you mean 'conv_"),
        ([("int3", "uint3")], (), "add one to the menu"),
        ([("int9x", "uint8")], (), "no number format"),
    ],
)
def test_wrong_settings_are_named(graph, menu, exclude, message):
    base = plan(graph, target="qnn-htp")
    with pytest.raises(ConfigError, match=message):
        with_choices(base, graph, menu, target="qnn-htp", exclude=exclude)


def test_an_integer_of_the_menu_takes_the_sign_of_the_tensor(graph):
    choice = with_choices(plan(graph), graph, [("uint4", "int8")]).choices["x"]
    found = dict(zip(choice.tensors, choice.options[0], strict=True))
    assert found["wa"].format == Integer(4, signed=True, strict=found["wa"].format.strict)
    assert found["x"].format == format_named("uint8")
