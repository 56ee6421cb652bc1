"""AIMET's quantsim configuration, as its schema documents it, becomes the plan it describes."""

import copy
import json

import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError
from jqnt.formats import Granularity, Integer
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.quantsim import read_quantsim_config
from jqnt.interop.quantsim_write import quantsim_config
from jqnt.interop.target_file import read_target
from jqnt.learn.calibrate import calibrate
from jqnt.placement import plan
from jqnt.targets import load_target

DOCUMENT = {
    "defaults": {
        "ops": {"is_output_quantized": "True", "is_symmetric": "False"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "False",
        "unsigned_symmetric": "True",
        "per_channel_quantization": "True",
        "hw_version": "V75",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {
        "Reshape": {"is_output_quantized": "False"},
        "Gemm": {"per_channel_quantization": "False", "is_symmetric": "True"},
        "Softmax": {"encoding_constraints": {"min": 0.0, "max": 1.0}},
    },
    "supergroups": [{"op_list": ["Conv", "Relu"]}],
    "supergroup_pass_list": ["LayerNormalization"],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}
RNG = np.random.default_rng(0)
GRAPH, PARAMS, _ = import_onnx(
    built(
        [
            node("Conv", "x w b", "c"),
            node("Relu", "c", "r"),
            node("Reshape", "r shape", "f"),
            node("Gemm", "f v d", "g"),
            node("Softmax", "g", "y"),
        ],
        {"x": ["N", 2, 1, 1]},
        ["y"],
        {
            "w": np.ones((4, 2, 1, 1)),
            "b": np.ones(4),
            "shape": np.asarray([0, 4]),
            "v": np.ones((4, 3)),
            "d": np.ones(3),
        },
    )
)


def changed(*path, value):
    return changed_in(DOCUMENT, *path, value=value)


def changed_in(document, *path, value):
    document = copy.deepcopy(document)
    table = document
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value
    return document


def specs(document, **options):
    return plan(GRAPH, target=read_quantsim_config(document, GRAPH, **options).target)


@pytest.mark.parametrize("from_file", [True, False])
def test_the_documented_example(tmp_path, from_file):
    source = DOCUMENT
    if from_file:
        source = tmp_path / "config.json"
        source.write_text(json.dumps(DOCUMENT))
    found = read_quantsim_config(source, GRAPH)
    laid = plan(GRAPH, target=found.target)
    assert set(laid.specs) == {"x", "w", "r", "v", "g", "y"} and not laid.biases
    assert laid.specs["w"].granularity == Granularity(0) and laid.specs["w"].symmetric
    assert laid.specs["v"].granularity == Granularity()
    assert laid.specs["g"].symmetric == "one_sided" and not laid.specs["r"].symmetric
    assert laid.specs["y"].limits == (0.0, 1.0)
    assert [entry.split(":")[0] for entry in found.unhonoured] == [
        "defaults.hw_version",
        "supergroup_pass_list.LayerNormalization",
    ]


def test_the_specific_wins_over_the_general():
    laid = specs(
        changed("op_type", "Conv", value={"params": {"weight": {"is_quantized": "False"}}})
    )
    assert "w" not in laid.specs and "v" in laid.specs
    laid = specs(changed("params", "bias", value={"is_quantized": "True"}))
    assert laid.biases["b"] == ("x", "w")
    laid = specs(changed("supergroups", value=[]))
    assert "c" in laid.specs
    laid = specs(changed("model_input", value={}))
    assert "x" not in laid.specs
    laid = specs(
        changed("op_type", "Conv", value={"is_input_quantized": "True"}) | {"model_input": {}}
    )
    assert "x" in laid.specs
    laid = specs(changed("defaults", "strict_symmetric", value="True"))
    assert laid.specs["w"].format == Integer(8, signed=True, strict=True)


def test_unsigned_symmetric_decides_by_what_calibration_sees():
    symmetric = changed("defaults", "ops", "is_symmetric", value="True")
    x = {"x": RNG.normal(size=(64, 2, 1, 1)).astype(np.float32)}
    for flag, bits_of_r in (("True", 8), ("False", 7)):
        document = changed_in(symmetric, "defaults", "unsigned_symmetric", value=flag)
        document = changed_in(document, "op_type", "Gemm", value={})
        laid = specs(document)
        theta = calibrate(lower(GRAPH), PARAMS, laid, [x])
        seen = lower(GRAPH)(PARAMS, {}, x, want=("r", "g"))
        # Nothing negative leaves the Relu: all codes above zero, else half of them.
        high = float(seen["r"].max())
        np.testing.assert_allclose(theta["r"].scale, high / (2**bits_of_r - 1), rtol=1e-6)
        assert float(theta["r"].zero_point) == (0 if flag == "True" else 128)
        assert float(theta["x"].zero_point) == 128
    assert read_quantsim_config(document, GRAPH).target.activation.symmetric is True


def test_a_product_and_its_bias_are_fused_where_the_pass_is_named():
    graph = import_onnx(
        built(
            [node("MatMul", "x v", "m"), node("Add", "m d", "y")],
            {"x": ["N", 4]}, ["y"], {"v": np.ones((4, 3)), "d": np.ones(3)},
        )
    )[0]  # fmt: skip
    document = changed("supergroup_pass_list", value=["MatmulAdd"])
    fused = plan(graph, target=read_quantsim_config(document, graph).target)
    apart = plan(graph, target=read_quantsim_config(DOCUMENT, graph).target)
    assert set(fused.specs) == {"x", "v", "y"} and set(apart.specs) - set(fused.specs) == {"m"}


def test_keys_that_only_a_newer_parser_knows_are_reported():
    document = changed("op_type", "Conv", value={"supported_qtypes": [{"*": "int8"}]})
    assert "op_type.Conv.supported_qtypes" in str(read_quantsim_config(document, GRAPH).unhonoured)


def test_widths_come_beside_the_file_and_kernels_limit_them():
    laid = specs(DOCUMENT, weights="int4", activations="uint16")
    assert laid.specs["w"].format.bits == 4 and laid.specs["x"].format == Integer(16)
    kernel = {"bitwidth": 8, "dtype": "int"}
    limited = changed(
        "defaults", "supported_kernels", value=[{"activation": kernel, "param": kernel}]
    )
    assert specs(limited).specs["w"].format.bits == 8
    with pytest.raises(ConfigError, match="quantsim has no int4 weights"):
        specs(limited, weights="int4")


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({k: v for k, v in DOCUMENT.items() if k != "params"}, "the key 'params' is missing"),
        (changed("supergroup", value=[]), "unknown key 'supergroup'; did you mean 'supergroups'"),
        (changed("op_type", "Conv", value={"is_quantised": "True"}), "op_type.Conv: unknown key"),
        (changed("defaults", "ops", "is_symmetric", value="yes"), "is_symmetric is 'yes'"),
        (changed("supergroups", value=[{"op_list": ["Conv"]}]), "two or more"),
        (
            changed("defaults", "supported_kernels", value=[{"activation": {"bitwidth": 8}}]),
            "no kernel of 8 bits",
        ),
        (changed("params", "bias", value="False"), "params.bias: an object is needed"),
    ],
)
def test_broken_files(document, match):
    with pytest.raises(ConfigError, match=match):
        read_quantsim_config(document, GRAPH)


def test_a_file_that_is_no_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_quantsim_config(path, GRAPH)


def test_a_written_configuration_reads_back_to_the_same_plan(tmp_path):
    first = read_quantsim_config(DOCUMENT, GRAPH).target
    document, unsaid = quantsim_config(first)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    found = read_target(str(path), GRAPH)
    assert not unsaid and not found.unhonoured
    assert plan(GRAPH, target=found.target) == plan(GRAPH, target=first)


@pytest.mark.parametrize("name", ["onnxruntime", "qnn-htp"])
def test_a_shipped_target_survives_as_a_configuration(name):
    document, unsaid = quantsim_config(load_target(name))
    found = plan(GRAPH, target=read_quantsim_config(document, GRAPH).target)
    own = plan(GRAPH, target=name)

    def plain(specs):
        return {n: (s.format, s.symmetric, s.granularity) for n, s in specs.items()}

    assert plain(own.specs).items() <= plain(found.specs).items()
    # What moves its input's encoding has a quantizer of its own there, of the same range.
    assert set(found.specs) - set(own.specs) <= set(own.tied)
    assert found.biases == own.biases
    assert bool(unsaid) == (name == "qnn-htp")
