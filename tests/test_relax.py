"""Relaxed search on tables, its polish and its front, against exact optima."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jqnt.errors import ConfigError
from jqnt.learn import polish
from jqnt.learn.allocate import allocate, tie
from jqnt.learn.certificate import spearman
from jqnt.learn.controller import augmented, raise_multiplier
from jqnt.learn.pareto import budgets_between, front, relaxed_front
from jqnt.learn.relax import relax

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def hawq(data):
    document = json.loads((data / "npu" / "hawq_instances.json").read_text())
    found = {}
    for instance in document["instances"]:
        layers = instance["layers"]
        labels = tie([tuple(p) for p in instance["ties"]], len(layers))
        summed = (labels == np.arange(labels.max() + 1)[:, None]).astype(float)
        loss = [[x["trace"] * x["dw2_4bit"], x["trace"] * x["dw2_8bit"]] for x in layers]
        cost = [[x["latency_int4"], x["latency_int8"]] for x in layers]
        budgets = [o["budget"] for o in instance["optima"] if o["cost"] == "latency"]
        found[instance["name"]] = summed @ np.array(loss), summed @ np.array(cost), budgets
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_relaxed_search_on_hawq(hawq, name):
    loss, cost, budgets = hawq[name]
    found = relaxed_front(loss, cost, np.array(budgets), key=KEY)
    gaps = []
    for i, budget in enumerate(budgets):
        optimum = allocate(loss, cost, budget).loss
        choice = np.asarray(found.choice[i])
        rows = np.arange(len(loss))
        assert cost[rows, choice].sum() <= budget * (1 + 1e-6)
        assert loss[rows, choice].sum() == pytest.approx(float(found.loss[i]), rel=1e-5)
        polished = polish.swap(loss, cost, budget, polish.fill(loss, cost, budget, choice))
        assert loss[rows, polished].sum() <= 1.01 * optimum
        gaps.append(float(found.loss[i]) / optimum - 1)
    assert np.mean(gaps) <= 0.04 and min(gaps) >= -1e-6


def test_one_program_serves_every_budget():
    rng = np.random.default_rng(0)
    traces = []

    @jax.jit
    def search(loss, cost, budget, key):
        traces.append(1)
        return relax(loss, cost, budget, steps=300, key=key)

    for _ in range(3):
        loss, cost = rng.random((2, 8, 4)).astype(np.float32)
        least, most = cost.min(1).sum(), cost.max(1).sum()
        for share in (0.2, 0.5, 0.9):
            budget = jnp.float32(least + share * (most - least))
            found = search(loss, cost, budget, KEY)
            optimum = allocate(loss, cost, float(budget))
            assert optimum.loss <= float(found.loss) + 1e-5 <= 1.1 * optimum.loss + 1e-5
            assert float(found.cost) <= float(budget) * (1 + 1e-6)
    assert len(traces) == 1


def test_illegal_options_and_hopeless_budgets():
    loss = jnp.array([[0.0, jnp.inf, 1.0], [0.0, 1.0, jnp.inf]])
    cost = jnp.array([[5.0, 0.0, 1.0], [5.0, 2.0, 0.0]])
    found = relax(loss, cost, jnp.float32(1.0), steps=50, key=KEY)
    assert found.choice.tolist() == [2, 1] and np.isfinite(found.logit).all()
    assert float(found.cost) == 3.0  # the cheapest there is; the caller sees that it is too dear


def test_augmented_lagrangian():
    # Rockafellar's form: -lambda^2 / (2 rho) where slack, lambda g + rho g^2 / 2 where pushed
    slack, pushed = jnp.float32(-1.0), jnp.float32(0.5)
    one = jnp.float32(1.0)
    assert float(augmented(slack, one, 4.0)) == pytest.approx(-1 / 8)
    assert float(augmented(pushed, one, 4.0)) == pytest.approx(0.5 + 0.5)
    assert float(jax.grad(lambda g: augmented(g, one, 4.0))(pushed)) == pytest.approx(3.0)
    assert float(raise_multiplier(slack, one, 4.0)) == 0
    assert float(raise_multiplier(pushed, one, 4.0)) == 3


def test_front_is_a_front():
    rng = np.random.default_rng(3)
    loss, cost = np.sort(rng.random((12, 4)))[:, ::-1], np.sort(rng.random((12, 4)))
    budgets = budgets_between(loss, cost, 16)
    exact = front(loss, cost, budgets)
    losses = [a.loss for a in exact]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(loss[:, 0].sum())
    assert losses[-1] == pytest.approx(loss[:, -1].sum())
    relaxed = np.asarray(relaxed_front(loss, cost, budgets, key=KEY).loss)
    assert (relaxed >= np.array(losses) - 1e-5).all()
    with pytest.raises(ConfigError, match="at least 2"):
        budgets_between(loss, cost, 1)


def test_polish_repairs_fills_and_swaps():
    loss = np.array([[4.0, 1.0, 0.0], [3.0, 2.0, 0.0]])
    cost = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 3.0]])
    top = np.array([2, 2])
    repaired = polish.repair(loss, cost, 5.0, top)
    assert repaired.tolist() == [1, 2]  # gives up 1 for 2 units: the cheapest loss per cost
    assert polish.fill(loss, cost, 5.0, np.array([0, 0])).tolist() == [2, 0]
    # from there nothing single fits, but giving up one step here buys two there
    assert polish.fill(loss, cost, 5.0, np.array([2, 0])).tolist() == [2, 0]
    assert polish.swap(loss, cost, 5.0, np.array([2, 0])).tolist() == [1, 2]
    near = polish.neighbours(loss, cost, 5.0, np.array([1, 2]), 3)
    assert [loss[[0, 1], c].sum() for c in near] == [3, 3, 4]
    assert {tuple(c.tolist()) for c in near[:2]} == {(1, 1), (2, 0)}
    assert polish.repair(loss, cost, 0.5, top).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_spearman_agrees_with_scipy(seed):
    a, b = np.round(np.random.default_rng(seed).normal(size=(2, 30)), 1)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(a, np.ones(30)) is None
