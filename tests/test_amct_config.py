"""AMCT's config.json, as its documentation shows it, becomes rules."""

import copy
import json

import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import Granularity, Integer
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.amct_config import read_amct_config
from jqnt.interop.amct_write import amct_config
from jqnt.interop.target_file import read_target
from jqnt.placement import plan
from jqnt.rules import Rule

DOCUMENT = {
    "version": 1,
    "batch_num": 2,
    "activation_offset": True,
    "joint_quant": False,
    "do_fusion": True,
    "skip_fusion_layers": [],
    "n_c": {
        "quant_enable": True,
        "dmq_balancer_param": 0.5,
        "activation_quant_params": {
            "num_bits": 8,
            "act_algo": "ifmr",
            "max_percentile": 0.999999,
            "min_percentile": 0.999999,
            "search_range": [0.7, 1.3],
            "search_step": 0.01,
            "asymmetric": False,
        },
        "weight_quant_params": {
            "num_bits": 8,
            "wts_algo": "arq_quantize",
            "channel_wise": False,
        },
    },
    "n_y": {
        "quant_enable": True,
        "activation_quant_params": {"num_bits": 8, "act_algo": "hfmg", "num_of_bins": 4096},
        "weight_quant_params": {"wts_algo": "ada_quantize", "num_iteration": 10000, "num_bits": 8},
    },
}
W = np.ones((4, 4, 1, 1))
GRAPH = import_onnx(
    built(
        [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y")],
        {"x": ["N", 4, 3, 3]},
        ["y"],
        {"w": W, "v": W},
    )
)[0]


def changed(layer, **entries):
    document = copy.deepcopy(DOCUMENT)
    if layer is None:
        return document | entries
    document[layer] = document.get(layer, {}) | entries
    return document


def test_the_documented_example():
    found = read_amct_config(DOCUMENT, GRAPH)
    specs = plan(GRAPH, found.rules, target="amct").specs
    assert found.batch_num == 2 and found.learned_rounding == ("n_y",)
    assert set(specs) == {"x", "w", "r", "v"}
    assert specs["x"].symmetric and not specs["r"].symmetric
    assert specs["x"].format == Integer(8, signed=True)
    assert specs["w"].granularity == Granularity() and specs["v"].granularity == Granularity(0)
    assert {entry.split(":")[0] for entry in found.unhonoured} == {
        "joint_quant",
        "do_fusion",
        "skip_fusion_layers",
        "n_c.act_algo",
        "n_c.max_percentile",
        "n_c.min_percentile",
        "n_c.search_range",
        "n_c.search_step",
        "n_c.dmq_balancer_param",
        "n_y.act_algo",
        "n_y.num_of_bins",
        "n_y.num_iteration",
    }


def test_a_disabled_layer_stays_float():
    found = read_amct_config(changed("n_c", quant_enable=False), GRAPH)
    assert set(plan(GRAPH, found.rules, target="amct").specs) == {"r", "v"}


def test_a_layer_that_is_not_named_follows_the_global_setting():
    document = {k: v for k, v in DOCUMENT.items() if k != "n_y"} | {"activation_offset": False}
    specs = plan(GRAPH, read_amct_config(document, GRAPH).rules, target="amct").specs
    assert specs["r"].symmetric and specs["v"].granularity == Granularity(0)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        (changed(None, version=2), "version is 2"),
        (changed(None, batch_num=0), "batch_num is 0"),
        (changed("n_d", quant_enable=True), "no layer 'n_d'; did you mean"),
        (changed("n_c", quant_enable="yes"), "quant_enable is 'yes'"),
        (changed("n_c", quantise=True), "unknown key 'quantise'"),
        (changed("n_c", weight_quant_params={"num_bits": 4}), "num_bits is 4"),
        (changed("n_c", weight_quant_params={"wts_algo": "ada"}), "arq_quantize or ada_quantize"),
        (changed("n_c", activation_quant_params={"act_algo": "kl"}), "act_algo is 'kl'"),
    ],
)
def test_broken_files(document, match):
    with pytest.raises(ConfigError, match=match):
        read_amct_config(document, GRAPH)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_amct_config(tmp_path / "config.json", GRAPH)


def test_a_written_configuration_reads_back_to_the_same_plan(tmp_path):
    found = read_amct_config(DOCUMENT, GRAPH)
    first = plan(GRAPH, found.rules, target="amct")
    document = amct_config(
        GRAPH, first, batch_num=found.batch_num, learned_rounding=found.learned_rounding
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    again = read_amct_config(path, GRAPH)
    assert (again.batch_num, again.learned_rounding) == (2, ("n_y",))
    described = read_target(str(path), GRAPH)
    assert described.unhonoured[-2:] == (
        "batch_num 2: all batches that are given count",
        "n_y.wts_algo ada_quantize: rounding is learned for all layers or for none",
    )
    second = plan(GRAPH, described.rules, target=described.target)
    assert {n: (s.format, s.symmetric, s.granularity) for n, s in second.specs.items()} == {
        n: (s.format, s.symmetric, s.granularity) for n, s in first.specs.items()
    }
    partly = plan(GRAPH, (Rule("v", format="float32"),), target="amct")
    assert amct_config(GRAPH, partly)["n_y"] == {"quant_enable": False}
    with pytest.raises(UnsupportedError, match="8 and 16 bits, not int4"):
        amct_config(GRAPH, plan(GRAPH, (Rule("v", format="int4"),)))


def test_a_json_file_of_another_kind(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="neither a quantsim configuration"):
        read_target(str(path), GRAPH)
