"""Rounding learned for a whole menu: the layer's own error, and the codes that freezing gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.errors import ConfigError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.round_choices import round_choices
from jqnt.plan import bind
from jqnt.quantizers import Affine, SoftRound

MENU = (("int8", "int8"), ("int4", "int8"), ("int2", "int8"))


@pytest.fixture(scope="module")
def rounded():
    c = case(menu=MENU)
    theta = round_choices(
        c.graph, c.params, c.theta, c.plan, c.batches, most_bits=4, steps=40,
        key=jax.random.key(0),
    )  # fmt: skip
    return c, theta


def test_every_width_gets_its_own_rounding_and_loses_less(rounded):
    c, theta = rounded
    apply, params = lower(c.graph), {n: jnp.asarray(v) for n, v in c.params.items()}
    owner = {t: n for n, choice in c.plan.choices.items() for t in choice.tensors}
    for weight in ("wa", "wb", "wg"):
        node = next(n for n in c.graph.nodes if weight in n.inputs)
        out, before = node.outputs[0], c.theta[owner[weight]].branches[weight]
        after = theta[owner[weight]].branches[weight]
        assert isinstance(after[0], Affine)  # eight bits are above `most_bits`
        x = np.concatenate([batch["x"] for batch in c.batches])
        exact = apply(params, {}, {"x": x}, want=(out,))[out]
        errors = []
        for branch in (*before[1:], *after[1:]):
            y = apply(params, {weight: branch}, {"x": x}, want=(out,))[out]
            errors.append(float(((np.asarray(y, np.float64) - exact) ** 2).sum()))
        assert all(isinstance(branch, SoftRound) for branch in after[1:])
        # never worse than to nearest; on the white inputs of the first layer that is the best
        assert errors[2] <= errors[0] * 1.0001 and errors[3] <= errors[1] * 1.0001
        if weight != "wa":
            assert errors[2] < 0.9 * errors[0]


def test_a_decided_plan_comes_out_rounded(rounded):
    c, theta = rounded
    taken = {name: min(1, len(ch.options) - 1) for name, ch in c.plan.choices.items()}
    decided = decide_plan(c.plan, taken)
    params, encodings = freeze(c.graph, c.params, bind(decide_theta(theta, c.plan, taken), decided))
    nearest = bind(decide_theta(c.theta, c.plan, taken), decided)["wb"]
    scale = np.asarray(nearest.scale, np.float64).reshape(-1, 1, 1, 1)
    codes = np.rint(params["wb"] / scale)
    away = np.abs(codes - c.params["wb"] / scale)
    assert encodings["wb"].format.bits == 4
    # up or down, which is one whole step where a weight lies on the grid, and not always nearest
    assert away.max() <= 1 + 1e-4 and (away > 0.501).any()


def test_without_choices_there_is_nothing_to_do(rounded):
    c, theta = rounded
    with pytest.raises(ConfigError, match="no choices"):
        round_choices(
            c.graph, c.params, theta, c.plan.replace(choices={}), c.batches, key=jax.random.key(0)
        )
