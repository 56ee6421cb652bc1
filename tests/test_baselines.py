"""The baselines on tables small enough to follow by hand."""

import numpy as np
import pytest

from jqnt.errors import BudgetError, ConfigError
from jqnt.learn.allocate import allocate
from jqnt.learn.baselines import greedy, ranked, uniform, worst_share

LOSS = np.array([[9.0, 2.0, 0.0], [3.0, 1.0, 0.0], [5.0, 4.0, 0.0]])
COST = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])


def test_uniform():
    assert uniform(LOSS, COST, 12.0).tolist() == [2, 2, 2]
    assert uniform(LOSS, COST, 11.0).tolist() == [1, 1, 1]
    lacks = np.where([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.inf, LOSS)
    assert uniform(lacks, COST, 6.0).tolist() == [1, 0, 1]
    with pytest.raises(BudgetError, match="minimum 3"):
        uniform(LOSS, COST, 2.0)


def test_greedy_goes_by_loss_alone():
    # 0-loss entries change nothing; then (1, 1) with loss 1, (0, 1) with 2, (1, 0) with 3
    assert greedy(LOSS, COST, 10.0).tolist() == [2, 1, 2]
    assert greedy(LOSS, COST, 8.0).tolist() == [1, 1, 2]
    assert greedy(LOSS, COST, 7.0).tolist() == [1, 0, 2]
    assert greedy(LOSS, COST, 3.0).tolist() == [0, 0, 0]


def test_ranked_lowers_the_least_sensitive_first():
    assert ranked(LOSS, COST, 10.0, [2.0, 3.0, 1.0]).tolist() == [2, 2, 1]
    assert ranked(LOSS, COST, 5.0, [2.0, 3.0, 1.0]).tolist() == [1, 1, 0]
    with pytest.raises(BudgetError, match="minimum 3"):
        ranked(LOSS, COST, 2.5, [1.0, 2.0, 3.0])


def test_worst_share():
    sqnr, low, high = np.array([30.0, 12.0, 25.0, 40.0, 18.0]), np.zeros(5, int), np.ones(5, int)
    assert worst_share(sqnr, low, high).tolist() == [0, 1, 0, 0, 0]
    assert worst_share(sqnr, low, high, 0.4).tolist() == [0, 1, 0, 0, 1]
    with pytest.raises(ConfigError, match="between 0 and 1"):
        worst_share(sqnr, low, high, 1.5)


@pytest.mark.parametrize("seed", range(5))
def test_none_beats_the_exact_allocation(seed):
    rng = np.random.default_rng(seed)
    loss = -np.sort(-rng.random((10, 4)), 1)
    cost = np.sort(rng.random((10, 4)), 1)
    budget = cost.min(1).sum() + 2
    best = allocate(loss, cost, budget).loss
    rows = np.arange(10)
    for choice in (greedy(loss, cost, budget), ranked(loss, cost, budget, rng.random(10))):
        assert cost[rows, choice].sum() <= budget and loss[rows, choice].sum() >= best - 1e-12
