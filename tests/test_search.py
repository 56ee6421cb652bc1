"""Search on a small network against the enumeration of all its plans."""

import itertools

import jax
import numpy as np
import pytest
from compilations import compilations
from searched import case

from jqnt import npu
from jqnt.encodings import Encodings
from jqnt.errors import BudgetError, ConfigError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.learn import fit as fitting
from jqnt.learn.certificate import dual_bound
from jqnt.learn.controller import LAGRANGIAN, pid
from jqnt.learn.prices import prices
from jqnt.learn.search import search
from jqnt.learn.space import choice_logits, space
from jqnt.learn.sweep import sweep
from jqnt.learn.trainable import field
from jqnt.plan import Options, bind

KEY = jax.random.key(0)
MENU = (("int8", "int8"), ("int4", "int8"), ("int2", "int8"))


def made(c):
    return space(c.graph, c.params, c.plan, c.theta, c.prices, c.batches, batch_size=16)


@pytest.fixture(scope="module")
def enumerated():
    """The case with three options a choice, its space, every plan with its cost and true loss."""
    c = case(menu=MENU)
    own = made(c)
    options = (range(len(choice.options)) for choice in c.plan.choices.values())
    plans = np.array(list(itertools.product(*options)))
    rows = np.stack([own.trial.branches(a) for a in plans])
    losses = own.trial.losses(c.params, c.theta, rows, rows[0], own.batches)
    costs = np.array([c.prices.cost(a)[0] for a in plans])
    return c, own, plans, costs, losses


@pytest.fixture(scope="module")
def searches(enumerated):
    c, own, *_ = enumerated
    programs = ("_chunk", "trial_losses")
    before = [compilations(p) for p in programs]
    low, high = (float(x[0]) for x in c.prices.range())
    fitting._chunk.clear_cache()  # else an equal search of another test may have compiled it
    found = {}
    for share in (0.15, 0.4, 0.8):
        budget = low + share * (high - low)
        found[budget] = search(own, [budget], steps=50, key=KEY)
    return found, [compilations(p) - n for p, n in zip(programs, before, strict=True)]


def test_the_best_plan_is_found(enumerated, searches):
    *_, plans, costs, losses = enumerated
    for budget, found in searches[0].items():
        best = losses[costs <= budget].min()
        assert best * (1 - 1e-6) <= found.loss <= best * 1.01
        assert found.cost["latency_s"] <= budget * (1 + 1e-9)
        at = int(np.flatnonzero((plans == list(found.assignment.values())).all(1))[0])
        assert found.loss == pytest.approx(losses[at], rel=1e-4)
        assert found.cost["latency_s"] == pytest.approx(costs[at], rel=1e-6)


def test_one_compilation_serves_every_budget(searches):
    assert searches[1] == [1, 0]  # the training chunk; the enumeration compiled the losses


def test_the_certificate_holds_on_its_table(enumerated, searches):
    c, _, plans, costs, _ = enumerated
    rows = np.arange(plans.shape[1])
    for budget, found in searches[0].items():
        proof = found.certificate
        sums = found.table[rows, plans].sum(1)
        optimum = sums[costs <= budget].min()
        assert proof.dual_bound <= optimum + 1e-9 <= proof.loss + 2e-9
        assert proof.exact == (proof.loss <= optimum + 1e-12)
        room = np.array([budget]) - c.prices.constant
        again = dual_bound(found.table, c.prices.table, room, np.array(proof.multiplier))
        assert again == pytest.approx(proof.dual_bound)
        assert proof.loss - proof.gap <= optimum + 1e-9
        assert proof.additivity is None or 0 < proof.additivity <= 1


def test_the_plan_found_is_ready_to_freeze_and_costs_what_was_promised(enumerated, searches):
    c, *_ = enumerated
    for found in searches[0].values():
        assert not found.plan.choices
        assert not any(isinstance(q, Options) for q in found.theta.values())
        _, encodings = freeze(c.graph, c.params, bind(found.theta, found.plan))
        assert isinstance(encodings, Encodings)
        workload, device = npu.workload(c.graph, c.params), npu.device("embedded-demo")
        latency = float(npu.latency(workload, encodings, device))
        assert latency == pytest.approx(found.cost["latency_s"], rel=1e-5)


def test_relaxed_search_prefers_what_the_budget_allows(searches):
    tight, loose = (found.relaxed for found in list(searches[0].values())[::2])
    wide = [sum(jax.nn.softmax(v / 0.05)[0] for v in logits.values()) for logits in (tight, loose)]
    # option 0 is w8a8: more of it where there is more time
    assert wide[1] > wide[0] + 0.5


def test_a_sweep_is_a_front(enumerated):
    c, own, _, costs, losses = enumerated
    low, high = (float(x[0]) for x in c.prices.range())
    budgets = [[low + share * (high - low)] for share in (0.9, 0.7, 0.5, 0.3)]
    runs = []
    found = sweep(own, budgets, steps=16, progress=lambda *told: runs.append(told), key=KEY)
    for (budget,), one in zip(budgets, found, strict=True):
        assert one.cost["latency_s"] <= budget
        assert one.loss <= 1.01 * losses[costs <= budget].min() + 1e-12
    assert [f.loss for f in found] == sorted(f.loss for f in found)
    assert sum(what == "sensitivities" and done == total for what, done, total in runs) == 1
    assert sweep(own, budgets, before=found, key=KEY) == found
    with pytest.raises(BudgetError):
        sweep(own, [*budgets, [low * 0.5]], key=KEY)


@pytest.mark.parametrize(
    "relaxation, controller",
    [("gumbel", LAGRANGIAN), ("bits", pid()), ("hgq", LAGRANGIAN), ("dq", LAGRANGIAN)],
)
def test_other_relaxations_end_at_the_same_plans(enumerated, relaxation, controller):
    c, _, _, costs, losses = enumerated
    own = space(
        c.graph, c.params, c.plan, c.theta, c.prices, c.batches, batch_size=16,
        relaxation=relaxation, controller=controller,
    )  # fmt: skip
    low, high = (float(x[0]) for x in c.prices.range())
    budget = low + 0.4 * (high - low)
    found = search(own, [budget], steps=20, key=KEY)
    assert found.loss <= 1.01 * losses[costs <= budget].min()
    start = own.value(np.array([budget]), 20)
    moved = (start["bits"] or {n: start["theta"][n].logit for n in c.plan.choices}).items()
    assert any((np.asarray(v) != found.relaxed[n]).any() for n, v in moved)


def test_two_budgets_at_once():
    c = case(kinds=("latency_s", "size_bytes"), menu=MENU)
    own = made(c)
    low, high = c.prices.range()
    budget = low + np.array([0.6, 0.4]) * (high - low)
    found = search(own, budget, steps=10, key=KEY)
    assert (np.array(list(found.cost.values())) <= budget * (1 + 1e-9)).all()
    assert list(found.cost) == ["latency_s", "size_bytes"]
    looser = search(own, high, steps=0, key=KEY)
    assert looser.loss <= found.loss and set(looser.assignment.values()) == {0}


def test_conversions_count():
    menu = (("int8", "int8"), ("int8", "int16"))
    c = case("snapdragon-8-gen-3", menu=menu)
    work, profile = npu.workload(c.graph, c.params), npu.device("snapdragon-8-gen-3")
    priced = prices(c.plan, work, profile, converting=True)
    own = space(c.graph, c.params, c.plan, c.theta, priced, c.batches, batch_size=16)
    counts = [range(len(choice.options)) for choice in c.plan.choices.values()]
    plans = np.array(list(itertools.product(*counts)))
    rows = np.stack([own.trial.branches(a) for a in plans])
    losses = own.trial.losses(c.params, c.theta, rows, rows[0], own.batches)
    costs = priced.costs(plans)[0]
    budget = float(np.quantile(costs, 0.3))
    found = search(own, [budget], steps=5, key=KEY)
    assert found.cost["latency_s"] <= budget * (1 + 1e-9)
    assert found.loss <= 1.01 * losses[costs <= budget].min()
    assert found.certificate.dual_bound <= found.certificate.loss * (1 + 1e-9)


def test_scales_may_train_in_the_same_run(enumerated):
    c, own, *_ = enumerated
    budget = c.prices.range()[0] * 1.2
    held = search(own, budget, steps=0, key=KEY)
    scales = field("scale")
    trained = search(
        own,
        budget,
        steps=10,
        trainable=lambda path, leaf: choice_logits(path, leaf) or scales(path, leaf),
        key=KEY,
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), held.params, trained.params)
    assert all(same.values())
    first = next(iter(held.theta))
    assert bool((held.theta[first].scale != trained.theta[first].scale).any())
    apply = lower(c.graph)
    outputs = apply(trained.params, bind(trained.theta, trained.plan), {"x": c.batches[0]["x"]})
    assert np.isfinite(outputs["y"]).all()


def test_bad_input(enumerated):
    c, own, *_ = enumerated
    with pytest.raises(BudgetError, match="is below the minimum"):
        search(own, c.prices.range()[0] * 0.9, key=KEY)
    with pytest.raises(ConfigError, match="-1 steps"):
        search(own, c.prices.range()[1], steps=-1, key=KEY)
    with pytest.raises(ConfigError, match="same choices"):
        space(c.graph, c.params, c.plan.replace(choices={}), c.theta, c.prices, c.batches)
