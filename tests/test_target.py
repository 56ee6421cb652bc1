"""Every shipped target loads; a wrong description says what is wrong."""

import pytest

from jqnt.errors import ConfigError
from jqnt.formats import FP32, Integer
from jqnt.targets import load_target, target_names

MINIMAL = """
name = "mine"
source = "a data sheet"
[activation]
format = "uint8"
symmetric = false
granularity = "tensor"
formats = ["uint8"]
[weight]
format = "int8"
symmetric = true
strict = true
granularity = "channel"
formats = ["int8", "int4"]
[bias]
format = "int32"
[operators]
Conv = { weight = { formats = ["int8"] } }
MaxPool = { encoding = "shared" }
[[chains]]
ops = [["Conv"], ["Relu", "Clip"]]
[[chains]]
ops = [["Conv"], ["Add"]]
joins = true
"""


@pytest.mark.parametrize("name", target_names())
def test_shipped_targets_load_and_are_consistent(name):
    target = load_target(name)
    assert target.name == name and target.source
    assert {target.activation.format.name, "*"} & target.activation.formats
    assert {target.weight.format.name, "*"} & target.weight.formats
    assert target.bias in (FP32, Integer(32, signed=True))
    for chain in target.chains:
        assert len(chain.ops) > 1 and set(chain.ops[0]) <= target.operators.keys()


def test_a_description_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    target = load_target(path)
    assert target.weight.format == Integer(8, signed=True, strict=True)
    assert target.legal("Conv", "weight") == {"int8", "float32"}
    assert target.legal("Gemm", "weight") == {"int8", "int4", "float32"}
    assert [chain.joins for chain in target.chains] == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "mine"', 'nam = "mine"', "unknown key 'nam'; did you mean 'name'"),
        ('source = "a data sheet"', "", "KeyError 'source'"),
        ('encoding = "shared"', 'encoding = "same"', "operator MaxPool: encoding 'same'"),
        ('granularity = "channel"', 'granularity = "row"', r"\[weight\]: granularity 'row'"),
        ('format = "uint8"', 'format = "uint99"', "uint99|no number format|1 to 32 bits"),
        ("symmetric = true", 'symmetric = "both"', "symmetric 'both' is not true"),
        ("joins = true", "join = true", "unknown key 'join'"),
        ("[bias]", "[bias", "cannot be read"),
    ],
)
def test_wrong_descriptions(tmp_path, old, new, match):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError, match=match):
        load_target(path)


def test_a_missing_file_and_an_unknown_name(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_target(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="did you mean 'tflite'"):
        load_target("tflit")
