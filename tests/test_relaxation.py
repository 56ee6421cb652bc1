"""Real-valued bits: exact at every width, linear between, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.learn.relaxation import bit_grid, bit_logits, hat, noisy, with_bits

WIDTHS = np.array([2.0, 4.0, 8.0, 16.0], np.float32)


@pytest.mark.parametrize("bits", [0.0, 2.0, 2.5, 4.0, 5.0, 8.0, 11.0, 16.0, 20.0])
def test_hats_interpolate(bits):
    weights = np.asarray(hat(jnp.float32(bits), WIDTHS))
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    costs = np.array([3.0, 1.0, 7.0, 2.0])  # any table: numpy's linear interpolation of it
    assert weights @ costs == pytest.approx(np.interp(bits, WIDTHS, costs))


def test_hats_have_the_slope_of_their_segment():
    costs = jnp.array([3.0, 1.0, 7.0, 2.0])
    slope = jax.grad(lambda b: hat(b, WIDTHS) @ costs)
    assert float(slope(jnp.float32(3.0))) == pytest.approx(-1.0)
    assert float(slope(jnp.float32(5.0))) == pytest.approx(1.5)
    assert hat(jnp.float32(3.0), WIDTHS[:1]).tolist() == [1.0]


def test_pairs_are_products_and_illegal_ones_are_left_out():
    grid = np.array([[4, 8], [8, 8], [8, 16], [8, 16]], np.float32)
    legal = np.array([True, True, True, True])
    p = jax.nn.softmax(bit_logits(jnp.array([5.0, 8.0]), grid, legal))
    np.testing.assert_allclose(p, [0.75, 0.25, 0, 0], atol=1e-6)
    p = jax.nn.softmax(bit_logits(jnp.array([8.0, 16.0]), grid, legal))
    np.testing.assert_allclose(p, [0, 0, 0.5, 0.5], atol=1e-6)
    p = jax.nn.softmax(
        bit_logits(jnp.array([8.0, 12.0]), grid, np.array([True, True, True, False]))
    )
    np.testing.assert_allclose(p, [0, 2 / 3, 1 / 3, 0], atol=1e-6)
    gradient = jax.grad(lambda b: jax.nn.softmax(bit_logits(b, grid, legal))[1])(
        jnp.array([5.0, 8.5])
    )
    assert np.isfinite(gradient).all() and float(gradient[0]) > 0


def test_a_plan_at_integral_bits_is_that_plan():
    c = case()
    grid = bit_grid(c.plan)
    name = "ra"
    assert grid[name].tolist() == [[8, 8], [4, 8], [2, 8], [8, 16], [4, 16]]
    legal = np.asarray(np.isfinite(c.prices.table).all(0))
    for k, row in enumerate(grid[name]):
        bits = {n: jnp.asarray(row if n == name else g[0]) for n, g in grid.items()}
        theta = with_bits(c.theta, c.plan, bits, legal)
        p = np.asarray(jax.nn.softmax(theta[name].logit))
        np.testing.assert_allclose(p, np.eye(len(p))[k], atol=1e-6)


def test_noise_is_on_logits_alone_and_differs_by_key():
    c = case()
    first, second = (noisy(c.theta, jax.random.key(i)) for i in (0, 1))
    assert bool((first["ra"].logit != second["ra"].logit).all())
    same = jax.tree.map(
        lambda a, b: bool((jnp.asarray(a) == jnp.asarray(b)).all()),
        first["ra"].branches, c.theta["ra"].branches,
    )  # fmt: skip
    assert all(jax.tree.leaves(same))
