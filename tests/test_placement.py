"""Which tensors carry quantizers: small graphs by hand, the real ones by count and by rule."""

import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import FP16, Granularity, Integer, format_named
from jqnt.graph.onnx_import import import_onnx
from jqnt.placement import plan
from jqnt.rules import Rule, between, first_and_last, scheme
from jqnt.targets import target_names
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize
from jqnt.transforms.fold_bn import fold_bn

W = np.ones((4, 4, 1, 1))
BIAS = np.ones(4)


def graph_of(nodes, outputs=("y",), inputs=None, **params):
    inputs = inputs or {"x": ["N", 4, 6, 6]}
    read = {name for n in nodes for name in n.input}
    given = {k: v for k, v in {"w": W, "v": W, "b": BIAS, **params}.items() if k in read}
    return import_onnx(built(nodes, inputs, list(outputs), given))[0]


def carriers(found):
    return {name for name, spec in found.specs.items() if spec.role == "activation"}


def test_a_chain_carries_quantizers_at_its_ends_only():
    graph = graph_of(
        [
            node("Conv", "x w b", "a"),
            node("Relu", "a", "r"),
            node("Min", "r bound", "m"),
            node("Conv", "m v", "y"),
        ],
        bound=np.ones((4, 1, 1)),
    )
    found = plan(graph)
    assert carriers(found) == {"x", "m", "y"}
    assert found.specs["w"].granularity == Granularity(0)
    assert found.specs["w"].format == Integer(8, signed=True) and found.specs["w"].symmetric
    assert found.specs["x"].format == Integer(8) and not found.specs["x"].symmetric
    assert found.biases == {"b": ("x", "w")}
    assert "input of Conv" in found.specs["x"].rule and "output of Conv" in found.specs["m"].rule


def test_clip_bounds_and_pad_values_never_do():
    graph = graph_of(
        [
            node("Clip", "x lo hi", "c"),
            node("Pad", "c pads value", "p"),
            node("Conv", "p w", "y"),
        ],
        lo=np.float32(-1),
        hi=np.float32(1),
        pads=np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
        value=np.float32(0),
    )
    found = plan(graph)
    assert carriers(found) == {"x", "c", "y"}
    assert found.tied == {"p": "c"}


def test_a_convolution_before_an_add_carries_one_and_a_relu_after_it_is_fused():
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "c"),
        node("Add", "a c", "s"),
        node("Relu", "s", "y"),
    ]
    assert carriers(plan(graph_of(nodes))) == {"x", "a", "c", "y"}
    assert carriers(plan(graph_of(nodes), target="ncnn")) == {"x"}


def test_a_shortcut_of_slices_and_pads_shares_its_input():
    """The option-A shortcut of CIFAR ResNets."""
    graph = graph_of(
        [
            node("Relu", "x", "r"),
            node("Slice", "r start end axes steps", "s"),
            node("Pad", "s pads", "p"),
            node("Conv", "r w", "c", strides=[2, 2]),
            node("Add", "c p", "y"),
        ],
        start=np.asarray([0, 0]),
        end=np.asarray([99, 99]),
        axes=np.asarray([2, 3]),
        steps=np.asarray([2, 2]),
        pads=np.zeros(8, np.int64),
    )
    found = plan(graph)
    assert carriers(found) == {"x", "r", "c", "y"}
    assert found.tied == {"s": "r", "p": "r"}


def test_concat_is_tied_where_the_target_asks():
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "c"),
        node("MaxPool", "c", "m", kernel_shape=[1, 1]),
        node("Concat", "a m", "y", axis=1),
    ]
    graph = graph_of(nodes)
    assert plan(graph).tied == {"m": "c"}
    assert carriers(plan(graph)) == {"x", "a", "c", "y"}
    for target in ("tflite", "qnn-htp"):
        found = plan(graph, target=target)
        assert found.tied == {"c": "a", "m": "a", "y": "a"}
        assert carriers(found) == {"x", "a"}


def test_float_operators_carry_none_unless_a_reader_asks():
    graph = graph_of([node("Exp", "x", "e"), node("Conv", "e w", "c"), node("Sqrt", "c", "y")])
    assert carriers(plan(graph)) == {"e", "c"}


def test_integers_never_carry_one():
    graph = graph_of(
        [
            node("Conv", "x w", "c"),
            node("ArgMax", "c", "i", axis=1),
            node("Transpose", "i", "t", perm=[0, 2, 3, 1]),
            node("Concat", "t t", "y", axis=0),
        ],
    )
    assert carriers(plan(graph)) == {"x", "c"}


def test_a_constant_operand_is_an_activation_whose_value_is_known():
    graph = graph_of(
        [node("Mul", "x k", "m"), node("Add", "m two", "y")], k=BIAS, two=np.float32(2)
    )
    found = plan(graph)
    assert carriers(found) == {"x", "k", "m", "y"}
    assert found.specs["k"].granularity == Granularity()


WEIGHTS = {
    "Conv": (node("Conv", "x w", "y"), (8, 4, 3, 3), {"x": ["N", 4, 6, 6]}, Granularity(0)),
    "depthwise": (
        node("Conv", "x w", "y", group=4),
        (4, 1, 3, 3),
        {"x": ["N", 4, 6, 6]},
        Granularity(0),
    ),
    "Gemm": (node("Gemm", "x w", "y"), (4, 5), {"x": ["N", 4]}, Granularity(1)),
    "Gemm transposed": (
        node("Gemm", "x w", "y", transB=1),
        (5, 4),
        {"x": ["N", 4]},
        Granularity(0),
    ),
    "MatMul": (node("MatMul", "x w", "y"), (4, 5), {"x": ["N", 3, 4]}, Granularity(-1)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_weight_is_scaled_on_the_axis_of_its_reader(case):
    read, shape, inputs, granularity = WEIGHTS[case]
    graph = graph_of([read], inputs=inputs, w=np.ones(shape))
    assert plan(graph).specs["w"].granularity == granularity
    per_tensor = plan(graph, scheme("int4", "uint8", per_channel=False)).specs["w"]
    assert per_tensor.granularity == Granularity() and per_tensor.format.bits == 4


def test_a_weight_keeps_its_role_through_a_transpose():
    graph = graph_of(
        [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")],
        inputs={"x": ["N", 4]},
        w=np.ones((5, 4)),
    )
    spec = plan(graph, (Rule(op="MatMul", role="weight", format="int4", granularity=2),)).specs["w"]
    assert spec.role == "weight" and spec.granularity == Granularity(1, 2)
    assert plan(graph).specs["w"].granularity == Granularity(0)


def test_a_computed_weight_is_quantized_where_it_is_read():
    """Batch-norm folding inside the graph, for training."""
    graph = graph_of(
        [node("Mul", "w gain", "f"), node("Conv", "x f", "y")], gain=np.ones((4, 1, 1, 1))
    )
    found = plan(graph)
    assert found.specs["f"].role == "weight" and "w" not in carriers(found)


def test_readers_that_need_different_axes_are_refused():
    graph = graph_of(
        [node("Gemm", "x w", "a"), node("Gemm", "a w", "y", transB=1)],
        inputs={"x": ["N", 4]},
        w=np.ones((4, 4)),
    )
    with pytest.raises(UnsupportedError, match="put an Identity before one"):
        plan(graph)


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("Gemm", "x w b", "a"), node("Gemm", "a v b", "y")], "another reader"),
        ([node("Gemm", "x w b", "y", beta=2.0)], "alpha or beta"),
    ],
)
def test_biases_that_cleanup_must_see_first(nodes, match):
    params = {"w": np.ones((4, 4)), "v": np.ones((4, 4)), "b": BIAS}
    read = {name for n in nodes for name in n.input}
    model = built(nodes, {"x": ["N", 4]}, ["y"], {k: v for k, v in params.items() if k in read})
    graph, params, _ = import_onnx(model)
    with pytest.raises(UnsupportedError, match=match):
        plan(graph)
    assert plan(cleanup(graph, params)[0]).biases


def test_fixed_ranges_follow_from_the_operator():
    graph = graph_of([node("Conv", "x w", "c"), node("Softmax", "c", "y", axis=1)])
    assert plan(graph).specs["y"].limits == (0.0, 1.0)
    assert plan(graph, target="tflite").specs["y"].limits == (0.0, 255 / 256)


def test_targets_have_their_formats():
    graph = graph_of([node("Conv", "x w b", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y")])
    tflite = plan(graph, target="tflite")
    assert tflite.specs["x"].format == Integer(8, signed=True)
    assert tflite.specs["w"].format == Integer(8, signed=True, strict=True)
    ncnn = plan(graph, target="ncnn")
    assert carriers(ncnn) == {"x", "r"} and ncnn.specs["x"].symmetric and not ncnn.biases
    assert set(target_names()) >= {"amct", "mnn", "ncnn", "onnxruntime", "qnn-htp", "tflite"}


RULES = [
    # "first and last layer 8 bits", on top of four
    (
        lambda g: (Rule(name=first_and_last(g), format="int8"), *scheme("int4")),
        {"w": 8, "v": 4, "u": 8},
    ),
    (lambda g: (Rule(name="n_c", role="weight", format="int2"),), {"w": 8, "v": 2, "u": 8}),
    (lambda g: (Rule(op="Conv", role="weight", format="int4"),), {"w": 4, "v": 4, "u": 4}),
    (
        lambda g: (Rule(name=between(g, ["r"], ["c"]), role="weight", format="int4"),),
        {"w": 8, "v": 4, "u": 8},
    ),
    (lambda g: (Rule(name="w", format="float32"),), {"v": 8, "u": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "bits"), RULES)
def test_rules_on_weights(rules, bits):
    graph = graph_of(
        [
            node("Conv", "x w b", "a"),
            node("Relu", "a", "r"),
            node("Conv", "r v", "c"),
            node("Conv", "c u", "y"),
        ],
        u=W,
    )
    found = plan(graph, rules(graph))
    weights = {n: s.format.bits for n, s in found.specs.items() if s.role == "weight"}
    assert weights == bits
    assert ("b" in found.biases) == ("w" in bits)


def test_rules_on_activations_biases_and_ranges():
    graph = graph_of(
        [
            node("Conv", "x w b", "c"),
            node("Softmax", "c", "s", axis=1),
            node("BatchNormalization", "s k b2 m v2", "y"),
        ],
        k=BIAS, b2=BIAS, m=BIAS, v2=BIAS,
    )  # fmt: skip
    found = plan(
        graph,
        (
            Rule(op="Softmax", format="int16"),
            Rule(op="BatchNormalization", format="float16"),
            Rule(name="x", symmetric=True, limits=(-2.0, 2.0)),
            Rule(role="bias", format="float32"),
            Rule(op="Conv", role="activation", granularity=Granularity(1)),
        ),
    )
    assert found.specs["s"].format == Integer(16, signed=True)
    assert found.specs["s"].rule == "rule 1: Rule(op='Softmax', format='int16')"
    assert found.specs["y"].format == FP16
    assert found.specs["x"].symmetric and found.specs["x"].limits == (-2.0, 2.0)
    assert found.specs["c"].granularity == Granularity(1)
    assert not found.biases


def test_a_rule_on_one_tied_tensor_holds_for_all():
    graph = graph_of(
        [node("Conv", "x w", "a"), node("Conv", "x v", "c"), node("Concat", "a c", "y", axis=1)]
    )
    found = plan(graph, (Rule(name="y", format="uint16"),), target="qnn-htp")
    assert found.specs["a"].format == Integer(16) and found.tied == {"c": "a", "y": "a"}
    free = plan(graph, (Rule(name="c", role="activation", format="float32"),), target="qnn-htp")
    assert carriers(free) == {"x"} and not free.tied


def test_a_name_keeps_the_targets_strictness_and_a_format_does_not():
    graph = graph_of([node("Conv", "x w", "y")])
    named = plan(graph, (Rule(role="weight", format="int4"),), target="tflite").specs["w"]
    exact = plan(graph, (Rule(role="weight", format=format_named("int4")),), target="tflite")
    assert named.format == Integer(4, signed=True, strict=True)
    assert exact.specs["w"].format == Integer(4, signed=True)


WRONG = [
    ((Rule(name="nothing*"),), {}, "rule 1, Rule\\(name='nothing\\*'\\), applies to no tensor"),
    ((Rule(name="ww", format="int4"),), {}, "did you mean 'w'"),
    ((Rule(), Rule(name="x", format="int8")), {}, "rule 2.*an earlier rule may match first"),
    ((Rule(name="w", format="int32"),), {}, "onnxruntime has no int32 weights.*legal: "),
    ((Rule(name="w", format="int32"),), {"target": "simulation"}, "int32 does not fit the float32"),
    ((Rule(op="Exp", format="int8"),), {}, "computes Exp in float"),
    (
        (Rule("w", format="int4", granularity=2, scale_format="int4", symmetric="one_sided"),), {},
        "on a symmetric grid",
    ),
    ((Rule(name="c", granularity="channel"),), {}, "give a Granularity"),
    ((Rule(role="bias", symmetric=True),), {}, "of a bias only the format can be set"),
    ((), {"target": "onnxruntim"}, "did you mean 'onnxruntime'"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "options", "match"), WRONG)
def test_wrong_rules_and_targets(rules, options, match):
    graph = graph_of([node("Conv", "x w b", "c"), node("Exp", "c", "y")])
    with pytest.raises(ConfigError, match=match):
        plan(graph, rules, **options)


def test_real_networks(data):
    """Counts from the graphs themselves: each weight one, each group one output."""
    graph, params, _ = import_onnx(data / "models" / "cifar10_resnet20.onnx")
    graph, params = fold_bn(*cleanup(graph, params))
    found = plan(graph)
    ops = [n.op for n in graph.nodes]
    weights = [n for n, s in found.specs.items() if s.role == "weight"]
    assert len(weights) == ops.count("Conv") + ops.count("Gemm") == len(found.biases) == 20
    # The input, every Conv, Add and Gemm with its Relu, and the mean.
    assert len(carriers(found)) == 1 + 19 + ops.count("Add") + 1 + 1
    assert len(found.tied) == ops.count("Slice") + ops.count("Pad")

    graph, params, _ = import_onnx(data / "models" / "digits_mbv2_skew_bn.onnx")
    graph, params = equalize(*fold_bn(*cleanup(graph, params)))
    found = plan(graph)
    ops = [n.op for n in graph.nodes]
    assert "Min" in ops
    assert len(carriers(found)) == 1 + ops.count("Conv") + ops.count("Add") + 2
