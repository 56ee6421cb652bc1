"""Bits, ranges and rounding in one run, from its first value to a frozen network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.learn.joint import joint, opened
from jqnt.learn.search import search
from jqnt.learn.space import space
from jqnt.plan import bind
from jqnt.quantizers import SoftRound
from jqnt.thaw import thaw

MENU = (("int8", "int8"), ("int4", "int8"), ("int2", "int8"))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def runs():
    c = case(menu=MENU)
    own = space(c.graph, c.params, c.plan, c.theta, c.prices, c.batches, batch_size=16)
    low, high = c.prices.range()
    budget = low + 0.25 * (high - low)
    return (
        c,
        own,
        budget,
        search(own, budget, steps=0, key=KEY),
        joint(own, budget, steps=100, key=KEY),
    )


def test_soft_rounding_starts_at_the_weights_themselves():
    c = case(menu=MENU)
    own = space(c.graph, c.params, c.plan, c.theta, c.prices, c.batches, batch_size=16)
    theta = opened(c.theta, own, 4)
    for name, choice in c.plan.choices.items():
        for tensor in set(choice.tensors) & {"wa", "wb", "wg"}:
            eight, four, two = theta[name].branches[tensor]
            assert not isinstance(eight, SoftRound)
            assert isinstance(four, SoftRound) and isinstance(two, SoftRound)
            scale = np.asarray(four.scale).reshape(-1, *[1] * (c.params[tensor].ndim - 1))
            np.testing.assert_allclose(
                four(jnp.asarray(c.params[tensor])),
                c.params[tensor],
                atol=float(scale.max()) * 0.02,
            )


def test_one_run_learns_all_three_within_the_budget(runs):
    c, _, budget, plain, found = runs
    assert found.cost["latency_s"] <= budget[0] * (1 + 1e-9)
    assert found.loss < plain.loss  # to nearest, on calibrated ranges, at the same budget
    moved = rounded = 0
    owner = {t: n for n, choice in c.plan.choices.items() for t in choice.tensors}
    for tensor, name in owner.items():
        quantizer = found.theta[tensor]
        branches = c.theta[name].branches[tensor]
        same = [np.array_equal(b.scale, quantizer.scale) for b in branches]
        moved += not any(same)
        rounded += isinstance(quantizer, SoftRound)
    assert moved and rounded
    assert all((found.params[n] == v).all() for n, v in c.params.items())


def test_what_was_learned_is_what_freezes(runs):
    c, *_, found = runs
    params, encodings = freeze(c.graph, found.params, bind(found.theta, found.plan))
    apply, inputs = lower(c.graph), {"x": c.batches[0]["x"]}
    qparams = bind(found.theta, found.plan.replace(biases={}))
    wanted = apply(found.params, qparams, inputs)["y"]
    without = {n: q for n, q in thaw(encodings).items() if n not in found.plan.biases}
    np.testing.assert_allclose(apply(params, without, inputs)["y"], wanted, rtol=1e-4, atol=1e-4)
    target = apply(c.params, {}, inputs)["y"]
    assert float(((wanted - target) ** 2).mean()) < float((target**2).mean())
