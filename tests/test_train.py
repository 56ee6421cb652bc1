"""Training around the loop: kinds of leaves, averages, accumulation, early stop, resume."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jqnt.errors import ConfigError, DataError
from jqnt.learn.average import averaged, with_average
from jqnt.learn.fit import fit, start
from jqnt.learn.kinds import by_kind, of_kind, sparing_quantizers
from jqnt.learn.source import Draw, Whole
from jqnt.learn.train import Watch, train
from jqnt.learn.trainable import split
from jqnt.quantizers import Affine, SoftRound
from jqnt.ranges import Pact, Tqt

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.normal(size=(64, 3)).astype(np.float32),
    "y": RNG.normal(size=64).astype(np.float32),
}


def squares(value, batch, *, step, key):
    noise = jax.random.normal(key, ()) * 1e-3
    return jnp.mean((batch["x"] @ value["params"]["w"] + noise - batch["y"]) ** 2), {}


def plain(value, batch, *, step, key):
    return jnp.mean((batch["x"] @ value["params"]["w"] - batch["y"]) ** 2), {}


def began():
    return {"params": {"w": jnp.ones(3)}}


VALUE = {
    "params": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
    "theta": {
        "w": Affine(jnp.float32(1), jnp.float32(0), jnp.float32(4)),
        "v": SoftRound(jnp.float32(1), jnp.float32(0), jnp.float32(4), jnp.ones((2, 2))),
        "x": Tqt(jnp.float32(1), jnp.float32(4)),
        "y": Pact(jnp.float32(1), jnp.float32(4)),
    },
}


def test_each_kind_of_leaf_has_its_optimizer():
    """With SGD of rate r and a gradient of 1 everywhere each leaf moves by its kind's r."""
    tx = by_kind(optax.sgd(1.0), ranges=optax.sgd(2.0), rounding=optax.sgd(4.0))
    ones = jax.tree.map(jnp.ones_like, VALUE)
    moved, _ = tx.update(ones, tx.init(VALUE), VALUE)
    theta = moved["theta"]
    assert float(moved["params"]["b"][0]) == -1
    assert [float(v) for v in (theta["w"].scale, theta["x"].log2_threshold, theta["y"].alpha)] == [
        -2
    ] * 3
    assert float(theta["v"].logit[0, 0]) == -4 and float(theta["v"].scale) == -2
    assert float(theta["w"].bits) == 0 and float(theta["w"].zero_point) == 0


def test_kinds_select_and_weight_decay_spares_quantizers():
    train_part, _ = split(VALUE, of_kind("weights", "ranges", but=("b",)))
    assert train_part["params"]["b"] is None and train_part["params"]["w"] is not None
    assert train_part["theta"]["v"].logit is None and train_part["theta"]["v"].scale is not None
    mask = sparing_quantizers(VALUE)
    assert mask["params"] == {"w": True, "b": False}
    assert not any(jax.tree.leaves(mask["theta"]))
    decay = optax.add_decayed_weights(0.1, mask=sparing_quantizers)
    zeros = jax.tree.map(jnp.zeros_like, VALUE)
    update, _ = decay.update(zeros, decay.init(VALUE), VALUE)
    np.testing.assert_allclose(update["params"]["w"], 0.1)
    assert not np.any(update["params"]["b"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(update["theta"]))
    with pytest.raises(ConfigError, match="no kind of leaf 'scales'"):
        of_kind("scales")


def test_the_average_follows_its_recursion():
    tx = with_average(optax.sgd(0.1), 0.9)
    result = fit(plain, began(), tx, Whole(DATA), steps=7, key=KEY)
    w, mean = np.ones(3), np.ones(3)
    x, y = (DATA[k].astype(np.float64) for k in ("x", "y"))
    for t in range(7):
        w = w - 0.1 * 2 * x.T @ (x @ w - y) / len(x)
        d = min(0.9, (1 + t) / (10 + t))
        mean = d * mean + (1 - d) * w
    np.testing.assert_allclose(result.theta["params"]["w"], w, rtol=1e-5)
    np.testing.assert_allclose(averaged(result)["params"]["w"], mean, rtol=1e-5)
    with pytest.raises(ConfigError, match="keeps no average"):
        averaged(start(began(), optax.sgd(0.1), key=KEY))


def test_accumulated_gradients_are_those_of_the_larger_batch():
    batches = [{k: v[i : i + 16] for k, v in DATA.items()} for i in range(0, 64, 16)]
    tx = optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
    small = fit(plain, began(), tx, batches, steps=8, key=KEY)
    large = fit(plain, began(), optax.sgd(0.1), Whole(DATA), steps=2, key=KEY)
    np.testing.assert_allclose(
        small.theta["params"]["w"], large.theta["params"]["w"], rtol=1e-5, atol=1e-6
    )


def test_the_best_is_kept_and_patience_ends_it():
    """A figure that is best at the third look: three more without a better one, then the end."""
    figures = iter([1.0, 2.0, 5.0, 4.0, 3.0, 4.5, 9.0])
    seen = []

    def evaluate(value):
        seen.append(np.asarray(value["params"]["w"]))
        return next(figures)

    log = []
    tx = optax.sgd(0.05)
    found = train(
        plain, start(began(), tx, key=KEY), tx, Draw(DATA, 16), steps=100,
        watch=Watch(every=5, evaluate=evaluate, patience=3), progress=lambda *e: log.append(e),
    )  # fmt: skip
    assert found.figure == 5.0 and found.steps == 30 and len(seen) == 6
    np.testing.assert_array_equal(found.best["params"]["w"], seen[2])
    np.testing.assert_array_equal(found.last.theta["params"]["w"], seen[5])
    assert [e[:2] for e in log] == [(5 * i, 100) for i in range(1, 7)]
    assert log[2][2]["figure"] == 5.0 and log[0][2]["samples_per_s"] > 0
    with pytest.raises(ConfigError, match="patience counts evaluations"):
        Watch(patience=2)


def watched(directory, kill=False):
    """Fifty steps with everything on; `kill` ends the process at the third evaluation."""
    looks = []

    def evaluate(value):
        looks.append(1)
        if kill and len(looks) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return -float(np.abs(value["params"]["w"]).sum())

    tx = with_average(optax.adam(0.03), 0.9)
    found = train(
        squares, start(began(), tx, key=KEY), tx, Draw(DATA, 16), steps=50, read=averaged,
        watch=Watch(every=10, evaluate=evaluate, directory=directory),
    )  # fmt: skip
    return found, len(looks)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    folder = str(tmp_path / "killed")
    code = f"import test_train; test_train.watched({folder!r}, kill=True)"
    paths = [str(Path(__file__).parent), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    dead = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    resumed, looks = watched(folder)
    assert looks == 3  # it went on from step 20
    whole, looks = watched(tmp_path / "whole")
    assert looks == 5 and whole.figure == resumed.figure
    for a, b in zip(
        jax.tree.leaves((whole.last.train, whole.last.state, whole.last.step, whole.best)),
        jax.tree.leaves((resumed.last.train, resumed.last.state, resumed.last.step, resumed.best)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    watch = Watch(every=5, directory=tmp_path / "c")
    tx = optax.sgd(0.1)
    train(plain, start(began(), tx, key=KEY), tx, Whole(DATA), steps=5, watch=watch)
    other = optax.adam(0.1)
    with pytest.raises(DataError, match="another network, plan or optimizer wrote it"):
        train(plain, start(began(), other, key=KEY), other, Whole(DATA), steps=9, watch=watch)
