"""The exact knapsack against enumeration, HiGHS and the published HAWQ-V3 instances."""

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqnt.errors import BudgetError, DataError
from jqnt.learn.allocate import allocate, best_allocations, tie
from jqnt.learn.certificate import certify, dual_bound
from jqnt.learn.milp import allocate_milp


@pytest.fixture(scope="module")
def hawq(data):
    """(name, loss, cost, labels, optimum) of the 18 published programs, ties merged."""
    document = json.loads((data / "npu" / "hawq_instances.json").read_text())
    found = []
    for instance in document["instances"]:
        layers = instance["layers"]
        labels = tie([tuple(p) for p in instance["ties"]], len(layers))
        summed = (labels == np.arange(labels.max() + 1)[:, None]).astype(float)
        loss = [[x["trace"] * x["dw2_4bit"], x["trace"] * x["dw2_8bit"]] for x in layers]
        costs = {
            "size": [[x["parameters"] / 2, x["parameters"]] for x in layers],
            "bops": [[x["bops"] / 64, x["bops"] / 16] for x in layers],
            "latency": [[x["latency_int4"], x["latency_int8"]] for x in layers],
        }
        for optimum in instance["optima"]:
            cost = summed @ np.array(costs[optimum["cost"]])
            found.append((instance["name"], summed @ np.array(loss), cost, labels, optimum))
    return found


def enumerated(loss, cost, budget):
    """All feasible (loss, choice), best first."""
    groups = np.arange(len(loss))
    plans = [np.array(c) for c in itertools.product(*(range(loss.shape[1]) for _ in groups))]
    fits = [c for c in plans if cost[groups, c].sum() <= budget]
    return sorted(float(loss[groups, c].sum()) for c in fits if np.isfinite(loss[groups, c].sum()))


def test_hawq_optima_are_reproduced(hawq):
    assert len(hawq) == 18
    for name, loss, cost, labels, optimum in hawq:
        found = allocate(loss, cost, optimum["budget"])
        where = (name, optimum["cost"], optimum["fraction"])
        assert found.loss == pytest.approx(optimum["objective"], rel=1e-8), where
        assert found.cost[0] == pytest.approx(optimum["cost_used"], rel=1e-9), where
        assert np.array_equal(np.where(found.choice[labels] == 0, 4, 8), optimum["bits"]), where
        proof = found.certificate
        assert proof.exact and proof.gap == 0
        assert proof.dual_bound == pytest.approx(optimum["lp_bound"], rel=1e-9), where
        assert proof.dual_bound <= optimum["objective"] * (1 + 1e-12)


def test_hawq_takes_milliseconds(hawq):
    for _, loss, cost, _, optimum in hawq:
        spent = []
        for _ in range(3):
            begin = time.perf_counter()
            allocate(loss, cost, optimum["budget"])
            spent.append(time.perf_counter() - begin)
        assert min(spent) < 0.05


def test_hawq_by_milp(hawq):
    for _, loss, cost, _, optimum in hawq[::4]:
        found = allocate_milp(loss, cost[None], [optimum["budget"]])
        assert found.loss == pytest.approx(optimum["objective"], rel=1e-8)
        assert found.certificate.exact


tables = st.integers(0, 2**31 - 1).map(np.random.default_rng)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 4), st.floats(0, 1.1), st.booleans())
def test_equals_enumeration(rng, groups, options, fraction, whole_numbers):
    loss, cost = rng.normal(size=(2, groups, options))
    if whole_numbers:  # many ties, in cost and in loss
        loss, cost = np.round(loss * 2), np.round(cost * 2)
    loss[rng.random(loss.shape) < 0.2] = np.inf
    loss[:, 0] = np.round(rng.normal(size=groups))
    legal = np.isfinite(loss)
    least = np.where(legal, cost, np.inf).min(1).sum()
    most = np.where(legal, cost, -np.inf).max(1).sum()
    budget = least + fraction * (most - least) + 1e-9
    expected = enumerated(loss, cost, budget)
    found = best_allocations(loss, cost, budget, 5)
    assert [a.loss for a in found] == pytest.approx(expected[:5], rel=1e-9, abs=1e-9)
    assert len({tuple(a.choice) for a in found}) == len(found)
    first = found[0]
    assert first.cost[0] <= budget and first.certificate.exact
    assert first.certificate.dual_bound <= first.loss + 1e-9
    milp = allocate_milp(loss, cost[None], [budget])
    assert milp.loss == pytest.approx(expected[0], rel=1e-8, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(tables, st.floats(0, 10))
def test_any_multiplier_gives_a_bound(rng, multiplier):
    loss, cost = rng.normal(size=(2, 4, 3))
    budget = float(cost.min(1).sum() + 0.7)
    best = enumerated(loss, cost, budget)[0]
    assert dual_bound(loss, cost[None], np.array([budget]), np.array([multiplier])) <= best + 1e-9
    proof = certify(loss, cost, budget, cost.argmin(1))
    assert proof.dual_bound <= best + 1e-9 <= proof.loss + 2e-9
    assert not proof.exact and proof.gap == pytest.approx(proof.loss - proof.dual_bound)


def test_thousand_groups_in_a_second():
    rng = np.random.default_rng(0)
    bits = np.arange(2, 14)
    loss = rng.lognormal(0, 2, (1000, 1)) * 4.0**-bits * rng.uniform(0.5, 2, (1000, 12))
    cost = rng.lognormal(0, 1, (1000, 1)) * bits / 8
    budget = cost.min(1).sum() * 2
    begin = time.perf_counter()
    found = allocate(loss, cost, budget)
    assert time.perf_counter() - begin < 1
    assert found.certificate.exact and found.cost[0] <= budget
    assert found.loss - found.certificate.dual_bound < 1e-3 * found.loss


def test_subset_sum_is_bounded_not_exact():
    # loss is cost with the sign turned: nothing can be pruned, and the certificate says so
    cost = np.random.default_rng(1).random((40, 3))
    found = allocate(1 - cost, cost, 20.0)
    proof = found.certificate
    assert not proof.exact and 0 <= proof.gap < 1e-6 * found.loss and found.cost[0] <= 20


def test_rounding_at_the_budget_is_no_refusal():
    cost = np.full((10, 2), [0.1, 0.2])
    loss = np.full((10, 2), [1.0, 0.0])
    assert allocate(loss, cost, 2.0).loss == 0
    assert allocate(loss, cost, sum([0.1] * 10)).loss == 10


def test_ties():
    assert tie([(0, 3), (3, 4), (1, 2)], 6).tolist() == [0, 1, 1, 0, 0, 2]
    assert tie([], 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("loss", "cost", "budget", "error", "says"),
    [
        ([[1.0, 0.0]], [[2.0, 3.0]], 1.5, BudgetError, "1.5 ms is below the minimum 2 ms"),
        ([[1.0, np.inf]], [[2.0, 1.0]], 1.5, BudgetError, "minimum 2 ms"),
        ([[1.0, 0.0]], [[2.0, 3.0]], np.nan, DataError, "nan"),
        ([[np.nan, 0.0]], [[2.0, 3.0]], 9.0, DataError, "loss table holds NaN or -inf in group 0"),
        ([[1.0, 0.0], [np.inf, np.inf]], [[1.0, 1.0]] * 2, 9.0, DataError, "group 1 has no legal"),
        ([[1.0, 0.0]], [[2.0, 3.0, 4.0]], 9.0, DataError, r"\(1, 2\)"),
        ([1.0, 0.0], [2.0, 3.0], 9.0, DataError, "expected"),
    ],
)
def test_bad_input(loss, cost, budget, error, says):
    with pytest.raises(error, match=says):
        allocate(np.array(loss), np.array(cost), budget, unit=" ms")


def test_count_must_be_positive():
    with pytest.raises(DataError, match="at least 1"):
        best_allocations(np.ones((1, 1)), np.ones((1, 1)), 2.0, 0)
