"""The documents of a search: anyone can check the certificate again."""

import csv
import io
import json
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from searched import case

from jqnt.errors import BudgetError, ConfigError
from jqnt.learn.allocate import allocate
from jqnt.learn.evidence import allocation, certificate, front_points
from jqnt.learn.milp import allocate_milp
from jqnt.learn.pareto import joint_budgets
from jqnt.learn.prices import prices
from jqnt.learn.space import space
from jqnt.learn.sweep import sweep
from jqnt.npu import device, workload
from jqnt.report.front import front_csv, front_svg

MENU = (("int8", "int8"), ("int4", "int8"), ("int2", "int8"))


@pytest.fixture(scope="module")
def front():
    c = case(menu=MENU)
    own = space(c.graph, c.params, c.plan, c.theta, c.prices, c.batches, batch_size=16)
    low, high = (float(v[0]) for v in c.prices.range())
    budgets = [[low + share * (high - low)] for share in (1.0, 0.5, 0.2)]
    return c, own, budgets, sweep(own, budgets, steps=0, key=jax.random.key(0))


def test_the_certificate_can_be_checked_from_its_document_alone(front):
    c, own, budgets, found = front
    for budget, one in zip(budgets, found, strict=True):
        proof = json.loads(json.dumps(certificate(own, one, budget)))
        loss, cost = (
            np.array([[np.inf if v is None else v for v in row] for row in table], float)
            for table in (proof["loss_table"], proof["cost_table"][0])
        )
        rows, (multiplier,), (room,) = np.arange(len(loss)), proof["multiplier"], proof["room"]
        exists = np.isfinite(loss) & np.isfinite(cost)
        priced = np.where(exists, loss + multiplier * np.where(exists, cost, 0), np.inf)
        bound = priced.min(1).sum() - multiplier * room
        assert bound == pytest.approx(proof["dual_bound"], rel=1e-9)
        taken = np.array(proof["taken"])
        assert cost[rows, taken].sum() <= room * (1 + 1e-9)
        assert loss[rows, taken].sum() == pytest.approx(proof["loss"])
        optimum = allocate(loss, cost, room).loss
        assert bound <= optimum * (1 + 1e-9) and proof["loss"] - proof["gap"] <= optimum + 1e-12
        for row in allocation(own, one):
            option = c.plan.choices[row["choice"]].options[row["option"]]
            assert list(row["formats"].values()) == [spec.format.name for spec in option]


def test_a_front_as_csv_and_plot(front):
    _, own, budgets, found = front
    points = front_points(own, budgets, found)
    assert [p["dominated"] for p in points] == [False] * 3
    worse = {**points[0], "loss": points[0]["loss"] * 2}
    table = list(csv.DictReader(io.StringIO(front_csv([*points, worse]))))
    assert float(table[1]["latency_ms"]) == pytest.approx(1e3 * points[1]["cost"]["latency_s"])
    assert [float(row["loss"]) for row in table[:3]] == [p["loss"] for p in points]
    assert ElementTree.fromstring(front_svg(points, "title", 1)).tag.endswith("svg")


def test_a_wider_budget_is_never_worse(front):
    *_, found = front
    losses = [one.loss for one in found]
    assert losses == sorted(losses)


def test_joint_budgets_leave_room_for_the_others():
    rng = np.random.default_rng(0)
    loss, cost = rng.random((6, 3)), rng.random((2, 6, 3))
    room = np.array([np.inf, cost[1].min(1).sum() + 0.5])
    budgets = joint_budgets(loss, cost, room, 4)
    found = [allocate_milp(loss, cost, np.array([b + 1e-9, room[1]])) for b in budgets]
    assert found[-1].loss == pytest.approx(allocate_milp(loss, cost[1:], room[1:]).loss)
    with pytest.raises(BudgetError):
        allocate_milp(loss, cost, np.array([budgets[0] - 1e-6, room[1]]))
    with pytest.raises(ConfigError, match="at least 2"):
        joint_budgets(loss, cost, room, 1)


def test_no_energy_figures_no_energy_budget():
    c = case()
    with pytest.raises(ConfigError, match="no figures of energy"):
        prices(c.plan, workload(c.graph, c.params), device("generic-roofline"), ("energy_j",))
