"""Chains with conversion costs, against enumeration and the integer program."""

import itertools
import time

import numpy as np
import pytest

from jqnt.errors import BudgetError, DataError
from jqnt.learn.allocate import allocate
from jqnt.learn.chain import allocate_chain
from jqnt.learn.milp import Coupling, allocate_milp


def best(loss, cost, conversion, budget):
    rows, found = np.arange(len(loss)), np.inf
    for choice in itertools.product(range(loss.shape[1]), repeat=len(loss)):
        c = np.array(choice)
        spent = cost[rows, c].sum() + conversion[rows[:-1], c[:-1], c[1:]].sum()
        if spent <= budget:
            found = min(found, loss[rows, c].sum())
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("room", [0.0, 0.4, 1.2, 50.0])
def test_equals_enumeration(seed, room):
    rng = np.random.default_rng(seed)
    loss, cost = rng.random((5, 3)), rng.random((5, 3))
    conversion = rng.random((4, 3, 3)) * (1 - np.eye(3))
    loss[rng.integers(5), 1] = np.inf
    cheap = allocate_milp(
        np.where(np.isfinite(loss), cost, np.inf),
        np.zeros((1, 5, 3)),
        [1e9],
        [Coupling(g, g + 1, conversion[g]) for g in range(4)],
    )
    budget = cheap.loss + float(conversion.sum()) / 4 + room
    expected = best(loss, cost, conversion, budget)
    found = allocate_chain(loss, cost, conversion, budget)
    assert found.loss == pytest.approx(expected, rel=1e-12)
    rows = np.arange(5)
    spent = cost[rows, found.choice].sum()
    spent += conversion[rows[:-1], found.choice[:-1], found.choice[1:]].sum()
    assert found.cost[0] == pytest.approx(spent) and spent <= budget * (1 + 1e-9)
    assert found.certificate.dual_bound <= expected + 1e-9


def test_agrees_with_milp_on_a_network_sized_chain():
    rng = np.random.default_rng(5)
    bits = np.array([4, 8, 16])
    loss = rng.lognormal(0, 1.5, (50, 1)) * 4.0 ** -bits[None]
    cost = rng.lognormal(0, 1, (50, 1)) * bits / 8
    conversion = 0.2 * (bits[:, None] != bits[None]) * rng.uniform(0.5, 1.5, (49, 1, 1))
    budget = float(cost[:, 0].sum() * 1.7)
    begin = time.perf_counter()
    found = allocate_chain(loss, cost, conversion, budget)
    assert time.perf_counter() - begin < 1
    couplings = [Coupling(g, g + 1, conversion[g]) for g in range(49)]
    assert found.loss == pytest.approx(
        allocate_milp(loss, cost[None], [budget], couplings).loss, rel=1e-7
    )
    assert found.certificate.dual_bound <= found.loss


def test_without_conversions_it_is_the_knapsack():
    rng = np.random.default_rng(2)
    loss, cost = rng.random((20, 4)), rng.random((20, 4))
    budget = cost.min(1).sum() + 3
    free = np.zeros((19, 4, 4))
    assert allocate_chain(loss, cost, free, budget).loss == pytest.approx(
        allocate(loss, cost, budget).loss, rel=1e-12
    )


def test_bad_input():
    loss, cost, step = np.zeros((2, 2)), np.ones((2, 2)), np.ones((1, 2, 2))
    with pytest.raises(BudgetError, match=r"2\.5 ms is below the minimum 3 ms"):
        allocate_chain(loss, cost, step, 2.5, unit=" ms")
    with pytest.raises(DataError, match=r"expected finite numbers of shape \(1, 2, 2\)"):
        allocate_chain(loss, cost, step[0], 9.0)
