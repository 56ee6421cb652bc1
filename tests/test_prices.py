"""Prices of choices: their sums are what the cost model says of the decided plan."""

import itertools

import numpy as np
import pytest
from searched import case

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.errors import BudgetError, ConfigError, UnsupportedError
from jqnt.freeze import freeze
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.space import expected_cost
from jqnt.npu.conversions import conversion_latency
from jqnt.plan import Choice, bind


@pytest.mark.parametrize("device", ["embedded-demo", "snapdragon-8-gen-3"])
def test_every_plan_costs_what_the_cost_model_says(device):
    c = case(device)
    profile = npu.device(device)
    workload = npu.workload(c.graph, c.params)
    options = [range(len(choice.options)) for choice in c.plan.choices.values()]
    for assignment in list(itertools.product(*options))[::97]:
        names = dict(zip(c.plan.choices, assignment, strict=True))
        plan = decide_plan(c.plan, names)
        _, encodings = freeze(c.graph, c.params, bind(decide_theta(c.theta, c.plan, names), plan))
        latency = float(npu.latency(workload, encodings, profile))
        assert c.prices.cost(assignment)[0] == pytest.approx(latency, rel=1e-5)
    low, high = c.prices.range()
    fastest, slowest = npu.latency_range(npu.tables(workload, profile))
    assert float(fastest) <= low[0] * (1 + 1e-6) and high[0] <= float(slowest) * (1 + 1e-6)


def test_several_kinds():
    c = case("embedded-demo", ("latency_s", "size_bytes"))
    assert c.prices.kinds == ("latency_s", "size_bytes")
    size = c.prices.cost([0] * 6)[1]
    # w8a8 first on the device's list: a byte per weight and four per bias of the Gemm
    weights = sum(v.size for n, v in c.params.items() if n.startswith("w"))
    assert size == weights + 4 * 10


def test_budgets_below_the_minimum_say_the_minimum():
    c = case()
    least = c.prices.range()[0]
    with pytest.raises(BudgetError, match=rf"minimum {least[0] * 1e3:.6g} ms"):
        c.prices.check(least * 0.5)
    with pytest.raises(ConfigError, match="2 budgets for latency_s"):
        c.prices.check([1.0, 2.0])
    np.testing.assert_allclose(c.prices.check(least), least - c.prices.constant)


def test_what_the_device_cannot_run_is_infinite_or_refused():
    c = case()
    profile, workload = npu.device("embedded-demo"), npu.workload(c.graph, c.params)
    wider = with_choices(c.plan, c.graph, [("int8", "uint8"), ("int3", "uint8")])
    table = prices(wider, workload, profile).table
    assert np.isfinite(table[:, :, 0]).all() and not np.isfinite(table[0, :, 1]).any()
    with pytest.raises(ConfigError, match="none of the options of choice"):
        prices(with_choices(c.plan, c.graph, [("int3", "uint8")]), workload, profile)
    with pytest.raises(ConfigError, match="did you mean 'latency_s'"):
        prices(c.plan, workload, profile, ("latency",))


def test_formats_of_one_group_that_two_choices_decide_are_refused():
    c = case()
    name, choice = next((n, x) for n, x in c.plan.choices.items() if "wb" in x.tensors)
    at = choice.tensors.index("wb")
    rest = tuple(t for t in choice.tensors if t != "wb")
    split = {
        **c.plan.choices,
        name: Choice(rest, tuple(o[:at] + o[at + 1 :] for o in choice.options)),
        "wb": Choice(("wb",), tuple((o[at],) for o in choice.options)),
    }
    with pytest.raises(UnsupportedError, match="conv_b"):
        prices(
            c.plan.replace(choices=split),
            npu.workload(c.graph, c.params),
            npu.device("embedded-demo"),
        )


def test_menu_of_a_device():
    assert menu_of(npu.device("snapdragon-8-gen-3")) == [
        ("int8", "int8"),
        ("int4", "int8"),
        ("int8", "int16"),
        ("int4", "int16"),
        ("float16", "float16"),
    ]


def test_conversions_couple_the_choices_on_both_sides():
    c = case("snapdragon-8-gen-3")
    profile = npu.device("snapdragon-8-gen-3")
    workload = npu.workload(c.graph, c.params)
    priced = prices(c.plan, workload, profile, converting=True)
    assert priced.couplings and c.prices.couplings == ()
    rng = np.random.default_rng(0)
    plans = np.array(
        [[rng.integers(len(x.options)) for x in c.plan.choices.values()] for _ in range(6)]
    )
    costs = priced.costs(plans)[0]
    for assignment, cost in zip(plans, costs, strict=True):
        names = dict(zip(c.plan.choices, assignment.tolist(), strict=True))
        plan = decide_plan(c.plan, names)
        _, encodings = freeze(c.graph, c.params, bind(decide_theta(c.theta, c.plan, names), plan))
        wanted = float(npu.latency(workload, encodings, profile))
        wanted += float(conversion_latency(workload, encodings, profile))
        assert cost == pytest.approx(wanted, rel=1e-5)
    low, high = priced.range()
    assert (low[0] <= costs).all() and (costs <= high[0]).all()
    theta = {n: c.theta[n].replace(logit=50.0 * np.eye(len(x.options), dtype=np.float32)[k])
             for (n, x), k in zip(c.plan.choices.items(), plans[0], strict=True)}  # fmt: skip
    table = np.where(np.isfinite(priced.table), priced.table, 0)
    expected = expected_cost(theta, c.plan, table, 1.0, priced.couplings)
    assert float(expected[0]) == pytest.approx(costs[0] - priced.constant[0], rel=1e-5)
