"""Several budgets and couplings by HiGHS, against enumeration."""

import itertools

import numpy as np
import pytest

from jqnt.errors import BudgetError, DataError
from jqnt.learn.certificate import dual_bound
from jqnt.learn.milp import Coupling, allocate_milp


def best(loss, cost, budget, couplings=()):
    found = np.inf
    for choice in itertools.product(range(loss.shape[1]), repeat=len(loss)):
        spent = cost[:, np.arange(len(loss)), choice].sum(1)
        for c in couplings:
            spent[c.constraint] += c.cost[choice[c.first], choice[c.second]]
        if (spent <= np.asarray(budget) + 1e-9).all():
            found = min(found, loss[np.arange(len(loss)), choice].sum())
    return found


@pytest.mark.parametrize("seed", range(6))
def test_two_budgets(seed):
    rng = np.random.default_rng(seed)
    loss, cost = rng.random((5, 3)), rng.random((2, 5, 3))
    loss[2, 1] = np.inf
    budget = cost.min(2).sum(1) + np.array([0.8, 0.9])
    found = allocate_milp(loss, cost, budget)
    assert found.loss == pytest.approx(best(loss, cost, budget), rel=1e-9)
    assert (np.array(found.cost) <= budget + 1e-9).all()
    proof = found.certificate
    assert proof.exact and proof.dual_bound <= found.loss + 1e-9
    again = dual_bound(loss, cost, budget, np.array(proof.multiplier))
    assert proof.dual_bound == pytest.approx(again)


@pytest.mark.parametrize("seed", range(4))
def test_couplings(seed):
    rng = np.random.default_rng(seed)
    loss, cost = rng.random((4, 3)), rng.random((2, 4, 3))
    couplings = [
        Coupling(0, 1, rng.random((3, 3))),
        Coupling(1, 3, rng.random((3, 3)) - 0.3, 1),
        Coupling(0, 3, rng.random((3, 3))),
    ]
    budget = cost.min(2).sum(1) + np.array([1.6, 0.8])
    found = allocate_milp(loss, cost, budget, couplings)
    assert found.loss == pytest.approx(best(loss, cost, budget, couplings), rel=1e-9)
    assert found.certificate.dual_bound <= found.loss + 1e-9


def test_budgets_that_cannot_be_met_together_are_named():
    loss = np.zeros((1, 2))
    cost = np.array([[[1.0, 2.0]], [[5.0, 3.0]]])
    with pytest.raises(BudgetError, match=r"budget 1.5 ms, minimum 1 ms; budget 4 MB, minimum 3"):
        allocate_milp(loss, cost, [1.5, 4.0], units=(" ms", " MB"))


def test_shapes_are_checked():
    with pytest.raises(DataError, match="2 budgets"):
        allocate_milp(np.zeros((1, 2)), np.zeros((1, 1, 2)), [1.0, 2.0])
