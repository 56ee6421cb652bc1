"""Controllers against numpy, and on a problem whose optimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.errors import ConfigError
from jqnt.learn.allocate import allocate
from jqnt.learn.controller import LAGRANGIAN, lagrangian, pid
from jqnt.learn.relax import relax


def test_pid_is_the_textbook_controller():
    rng = np.random.default_rng(0)
    kp, ki, kd = 3.0, 0.5, 2.0
    control = pid(kp, ki, kd)
    state = control.init(2)
    total, before = np.zeros(2), np.zeros(2)
    for g in rng.normal(size=(6, 2)):
        state = control.update(jnp.asarray(g, jnp.float32), state)
        total = np.maximum(0, total + g)
        wanted = np.maximum(0, kp * g + ki * total + kd * np.maximum(0, g - before))
        before = g
        np.testing.assert_allclose(state["multiplier"], wanted, rtol=1e-5, atol=1e-5)
    excess = jnp.array([0.2, -0.1])
    price, slope = jax.value_and_grad(control.price)(excess, state)
    assert float(price) == pytest.approx(float(state["multiplier"] @ excess), rel=1e-5)
    np.testing.assert_allclose(slope, state["multiplier"])


@pytest.mark.parametrize("control", [LAGRANGIAN, pid()])
def test_a_constrained_minimum_is_held(control):
    # min (x - 3)^2 with x <= 1: x = 1, and the multiplier is 2 (3 - 1) = 4
    def step(carry, _):
        x, state = carry
        slope = 2 * (x - 3) + jax.grad(lambda v: control.price(v[None] - 1, state))(x)
        x = x - 0.01 * slope
        return (x, control.update(x[None] - 1, state)), x

    (x, state), _ = jax.lax.scan(step, (jnp.float32(0), control.init(1)), None, length=4000)
    assert float(x) == pytest.approx(1, abs=0.02)
    assert float(state["multiplier"][0]) == pytest.approx(4, rel=0.1)


def test_relaxed_tables_under_pid_end_near_the_optimum():
    rng = np.random.default_rng(1)
    bits = np.array([2, 4, 8])
    loss = rng.lognormal(0, 1, (20, 1)) * 4.0**-bits
    cost = rng.lognormal(0, 1, (20, 1)) * bits
    budget = float(cost.min(1).sum() + 0.4 * (cost.max(1) - cost.min(1)).sum())
    found = relax(loss, cost, budget, controller=pid(), key=jax.random.key(0))
    assert float(found.cost) <= budget * (1 + 1e-5)
    assert float(found.loss) <= 1.25 * allocate(loss, cost, budget).loss


def test_bad_gains():
    with pytest.raises(ConfigError, match="penalty is 0"):
        lagrangian(penalty=0.0)
    with pytest.raises(ConfigError, match="derivative is -1"):
        pid(derivative=-1.0)
