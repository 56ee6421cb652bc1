"""Oscillating weights: the one-weight example of Nagel et al. 2022, its law, and the two cures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jqnt.learn.fit import fit
from jqnt.learn.oscillation import dampening, freeze_weight, still, track
from jqnt.learn.source import Whole
from jqnt.quantizers import Affine

KEY = jax.random.key(0)
GRID = Affine(jnp.float32(1), jnp.float32(0), jnp.float32(4))
RATE = 0.01


def codes(weights):
    """The codes after each step of SGD on (w* - Q(w))^2 / 2, float64 numpy, straight-through."""
    w, found = weights[0], []
    for _ in range(4000):
        w = w - RATE * (np.round(w) - weights[1])
        found.append(np.round(w))
    return np.array(found[2000:])


@pytest.mark.parametrize("distance", [0.1, 0.2, 0.35])
def test_the_frequency_is_the_distance_to_the_grid(distance):
    """A weight whose optimum lies `distance` from a code: a period of 1 / distance steps, since it
    climbs by rate * distance and falls by rate * (1 - distance)."""

    def loss(value, batch, *, step, key):
        return 0.5 * jnp.sum((batch["target"] - GRID(value["w"])) ** 2), {}

    def project(value, aux, *, step):
        return {"w": value["w"], "o": track(value["o"], GRID.codes(value["w"]), momentum=0.01)}

    target = jnp.asarray([3 + distance])
    value = {"w": jnp.asarray([3.2]), "o": still(GRID.codes(jnp.asarray([3.2])))}
    theta = fit(
        loss, value, optax.sgd(RATE), Whole({"target": target}), steps=4000,
        trainable=lambda path, leaf: path[0].key == "w", project=project, chunk=4000, key=KEY,
    ).theta  # fmt: skip
    turns = np.abs(np.diff(codes((3.2, 3 + distance)))) > 0
    expected = turns.mean()
    assert abs(expected - 2 * distance) < 0.02  # up and down once a period
    assert abs(float(theta["o"].frequency[0]) - expected) < 0.06


def numpy_track(path, momentum, threshold):
    code, direction, frequency, mean, frozen = path[0], 0.0, 0.0, path[0], False
    for new in path[1:]:
        change = np.sign(new - code)
        turned = change != 0 and change == -direction
        direction = change if change != 0 else direction
        frequency = momentum * turned + (1 - momentum) * frequency
        mean = mean if frozen else momentum * new + (1 - momentum) * mean
        frozen, code = frozen or frequency > threshold, new
    return direction, frequency, mean, frozen


def test_tracking_follows_the_paper():
    rng = np.random.default_rng(0)
    paths = np.cumsum(rng.integers(-1, 2, size=(60, 5)), 0).astype(np.float32)
    state = still(jnp.asarray(paths[0]))
    for new in paths[1:]:
        state = track(state, jnp.asarray(new), threshold=0.3, momentum=0.1)
    for i in range(5):
        direction, frequency, mean, frozen = numpy_track(paths[:, i], 0.1, 0.3)
        assert float(state.direction[i]) == direction and bool(state.frozen[i]) == frozen
        np.testing.assert_allclose(state.frequency[i], frequency, rtol=1e-5)
        np.testing.assert_allclose(state.mean[i], mean, rtol=1e-5)
    held = freeze_weight(jnp.zeros(5), GRID, state)
    expected = np.where(np.asarray(state.frozen) > 0, np.round(np.asarray(state.mean)), 0)
    np.testing.assert_array_equal(held, expected)


def test_dampening_pulls_to_the_middle_of_the_bin_and_not_beyond_the_grid():
    penalty = dampening(lambda step: 0.5 * step)
    w = jnp.asarray([[0.3, -1.2], [7.4, -9.0]])
    grid = Affine(jnp.float32(1), jnp.float32(0), jnp.float32(4))
    value, (dw, dq) = jax.value_and_grad(
        lambda w, q: penalty({"w": w}, {"w": q, "x": q}, 2.0), argnums=(0, 1)
    )(w, grid)
    np.testing.assert_allclose(value, 0.3**2 + 0.2**2, rtol=1e-5)
    np.testing.assert_allclose(dw, [[0.6, -0.4], [0, 0]], rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(dq))
