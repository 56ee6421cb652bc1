"""Plans and rules through TOML and back."""

import numpy as np
import pytest
from searched import case

from jqnt.errors import ConfigError
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
