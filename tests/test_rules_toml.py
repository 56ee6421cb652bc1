"""Plans and rules through TOML and back."""

import numpy as np
import pytest
from built import built, node
from searched import case

from jqnt.errors import ConfigError
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.rules_toml import load_rules, plan_rules, rules_text
from jqnt.learn.decide import decide_plan
from jqnt.placement import plan
from jqnt.rules import Rule


@pytest.mark.parametrize("seed", range(3))
def test_a_decided_plan_is_placed_again_by_its_rules(tmp_path, seed):
    c = case()
    rng = np.random.default_rng(seed)
    taken = {n: int(rng.integers(len(ch.options))) for n, ch in c.plan.choices.items()}
    decided = decide_plan(c.plan, taken)
    file = tmp_path / "plan.toml"
    file.write_text(rules_text(plan_rules(decided)))
    again = plan(c.graph, load_rules(file))
    assert {n: s.format for n, s in again.specs.items()} == {
        n: s.format for n, s in decided.specs.items()
    }
    assert {n: s.granularity for n, s in again.specs.items()} == {
        n: s.granularity for n, s in decided.specs.items()
    }
    assert again.tied == decided.tied and again.biases == decided.biases


def test_names_of_any_kind_survive(tmp_path):
    names = ('we"ird', "back\\slash", "a[b]*?", "line\nbreak", "ünï")
    file = tmp_path / "r.toml"
    file.write_text(rules_text([Rule(name=names, role="weight", format="int4")]))
    assert load_rules(file) == (Rule(name=names, role="weight", format="int4"),)


def test_a_subgraph_between_two_tensors(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[[rule]]\nsubgraph = [["b"], ["d"]]\nrole = "weight"\nformat = "int4"\n')
    nodes = [node("Conv", f"{x} {w}", y) for x, w, y in ("xub", "bvc", "cwd", "dty")]
    weights = {name: np.ones((2, 2, 1, 1)) for name in "uvwt"}
    graph = import_onnx(built(nodes, {"x": ["N", 2, 3, 3]}, ["y"], weights))[0]
    laid = plan(graph, load_rules(file))
    assert {n: laid.specs[n].format.bits for n in "uvwt"} == {"u": 8, "v": 4, "w": 4, "t": 8}
    assert laid.specs["v"].rule.endswith("subgraph=(('b',), ('d',)))")
    file.write_text('[[rule]]\nsubgraph = [["d"], ["b"]]\nformat = "int4"\n')
    with pytest.raises(ConfigError, match="no path leads from"):
        plan(graph, load_rules(file))
    file.write_text('[[rule]]\nsubgraph = [["b"], ["d"]]\nname = "v"\n')
    with pytest.raises(ConfigError, match="a name or a subgraph"):
        load_rules(file)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[rule]\n", "cannot be read"),
        ("[rules]\nx = 1\n", "unknown table 'rules'"),
        ('[[rule]]\nformt = "int4"\n', "did you mean 'format'"),
        ("", "holds no"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_rules(file)
