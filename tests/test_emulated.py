"""Sensitivities on integers against emulations made one by one."""

import numpy as np
import pytest
from searched import case

from jqnt import integer
from jqnt.errors import DataError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.divergence import output_mse, with_targets
from jqnt.learn.emulated import integer_losses
from jqnt.learn.sensitivity import choice_losses
from jqnt.learn.trial import trial
from jqnt.plan import bind

MENU = (("int8", "int8"), ("int4", "int8"), ("int2", "int8"))


def test_one_program_gives_what_separate_emulations_give():
    c = case(menu=MENU)
    batches = with_targets(lower(c.graph), c.params, c.batches)
    family = integer.Family(c.graph)
    base = np.zeros(len(c.plan.choices), int)
    found = integer_losses(family, c.params, c.plan, c.theta, base, batches)
    assert len(family.programs) == 1  # int8, int4 and int2 weights lie in one container
    names = list(c.plan.choices)
    for row, k in ((0, 1), (2, 2), (len(names) - 1, 1)):
        if not np.isfinite(found[row, k]):
            continue
        taken = dict.fromkeys(names, 0) | {names[row]: k}
        qparams = bind(decide_theta(c.theta, c.plan, taken), decide_plan(c.plan, taken))
        run = integer.lower(c.graph, *freeze(c.graph, c.params, qparams))
        losses = [float(output_mse(run({"x": b["x"]}), b)) for b in batches]
        assert found[row, k] == pytest.approx(np.mean(losses), rel=1e-5)
    simulated = choice_losses(trial(c.graph, c.params, c.plan), c.params, c.theta, base, batches)
    both = np.isfinite(found) & np.isfinite(simulated)
    assert (np.isfinite(found) == np.isfinite(simulated)).all()
    np.testing.assert_allclose(found[both], simulated[both], rtol=0.15, atol=2e-4)
    with pytest.raises(DataError, match="no batches"):
        integer_losses(family, c.params, c.plan, c.theta, base, [])


def test_another_container_is_another_program():
    c = case(menu=(("int8", "int8"), ("int8", "int16")))
    batches = with_targets(lower(c.graph), c.params, c.batches)[:1]
    family = integer.Family(c.graph)
    taken = dict.fromkeys(c.plan.choices, 0)
    outputs = []
    for option in (0, 1):
        taken = dict.fromkeys(c.plan.choices, option)
        qparams = bind(decide_theta(c.theta, c.plan, taken), decide_plan(c.plan, taken))
        frozen = freeze(c.graph, c.params, qparams)
        inputs = {"x": batches[0]["x"]}
        outputs.append(np.asarray(family(*frozen)(inputs)["y"]))
        np.testing.assert_array_equal(outputs[-1], integer.lower(c.graph, *frozen)(inputs)["y"])
    assert len(family.programs) == 2
    assert (outputs[0] != outputs[1]).any()
