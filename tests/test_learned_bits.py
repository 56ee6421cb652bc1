"""HGQ's and DQ's quantizers: values by numpy, gradients by the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.learn.learned_bits import (
    Nearest,
    Stepped,
    bits_of_steps,
    nearest,
    stepped,
    steps_of_bits,
)
from jqnt.learn.relaxation import first_bits, widths_of
from jqnt.quantizers import Affine

X = np.random.default_rng(0).normal(size=(40,)).astype(np.float32)


def affine(scale, bits):
    return Affine(jnp.float32(scale), jnp.float32(0), jnp.float32(bits))


@pytest.mark.parametrize("bits, taken", [(3.2, 0), (5.9, 0), (6.5, 1), (30.0, 1)])
def test_the_nearest_width_with_a_surrogate_slope(bits, taken):
    branches = affine(0.5, 4), affine(0.05, 8)
    y, slope = jax.value_and_grad(
        lambda b: Nearest(b, branches, (4.0, 8.0))(jnp.asarray(X)).sum(), has_aux=False
    )(jnp.float32(bits))
    scale, top = ((0.5, 7), (0.05, 127))[taken]
    wanted = np.clip(np.rint(X / np.float32(scale)), -top - 1, top) * scale
    assert float(y) == pytest.approx(wanted.sum(), rel=1e-4, abs=1e-4)
    assert float(slope) == pytest.approx(np.log(2) * (X - wanted).sum(), rel=1e-3, abs=1e-4)


def test_step_and_range_have_dq_gradients():
    base, step, top = affine(0.1, 4), 0.7, -0.3
    x = jnp.asarray(X)
    d = 0.1 * 2**step
    low, high = -0.8 * 2**top, 0.7 * 2**top
    y = Stepped(jnp.float32(step), jnp.float32(top), base)(x)
    clipped = np.clip(X, low, high)
    np.testing.assert_allclose(y, d * np.rint(clipped / d), rtol=1e-5, atol=1e-6)
    by_step, by_top = jax.jacobian(lambda s, t: Stepped(s, t, base)(x), argnums=(0, 1))(
        jnp.float32(step), jnp.float32(top)
    )
    inside = (low < X) & (high > X)
    # d Q / d d = (Q(x) - x) / d, here by log2 d; outside the clipped value stands for x
    np.testing.assert_allclose(by_step, np.log(2) * (np.asarray(y) - clipped), rtol=1e-3, atol=1e-5)
    outer = np.where(inside, 0, np.where(X > 0, high, low) * np.log(2))
    np.testing.assert_allclose(by_top, outer, rtol=1e-4, atol=1e-6)


def test_bits_of_steps_and_back():
    widest = np.array([8, 16], np.float32)
    wanted = np.array([3.5, 12.0], np.float32)
    steps = steps_of_bits(wanted, widest)
    np.testing.assert_allclose(bits_of_steps(jnp.asarray(steps), widest), wanted, rtol=1e-5)
    # q_max / d = 7: 15 levels, of the 16 that DQ's log2(7 + 1) + 1 = 4 bits have
    ratio = np.log2(14 / (2**8 - 1))
    four = bits_of_steps(jnp.array([[0, ratio], [0, 0]]), np.array([8, 0], np.float32))
    np.testing.assert_allclose(four, [np.log2(15), 0], rtol=1e-5)


def test_every_tensor_of_a_choice_gets_one():
    c = case()
    bits = first_bits("hgq", c.plan)
    tensors = {t for choice in c.plan.choices.values() for t in choice.tensors}
    assert tensors <= nearest(c.theta, c.plan, bits).keys()
    steps = first_bits("dq", c.plan)
    quantizers = stepped(c.theta, c.plan, steps)
    assert tensors <= quantizers.keys()
    assert all(q.base.bits >= 8 for q in quantizers.values())
    for name, widths in widths_of("dq", c.plan, steps).items():
        np.testing.assert_allclose(widths, bits[name], rtol=1e-4)
