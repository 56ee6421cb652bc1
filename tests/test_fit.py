"""fit against closed forms and a plain optax loop; sources; one program for equal problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from jqnt.errors import ConfigError, DataError
from jqnt.learn.fit import advance, fit, start
from jqnt.learn.source import Draw, Whole, sources
from jqnt.learn.trainable import everything, field, merge, named, split
from jqnt.quantizers import Affine
from jqnt.types import Leaf

KEY = jax.random.key(0)
ADAM = optax.adam(1e-1)
SGD = optax.sgd(1e-1)


@struct.dataclass
class Line:
    slope: Leaf
    offset: Leaf


def squares(value, batch, *, step, key):
    error = jnp.sum((value["f"].slope * batch["x"] + value["f"].offset - batch["y"]) ** 2)
    return error, {"error": error, "x": batch["x"]}


def seen(value, batch, *, step, key):
    return value["w"] * batch["x"].sum(), {"x": batch["x"].sum(), "step": step}


def line(n=5):
    x = np.linspace(-1, 1, n, dtype=np.float32)
    return {"x": x, "y": 3 * x - 2}


def test_reaches_the_least_squares_solution():
    result = fit(squares, {"f": Line(0.0, 0.0)}, SGD, Whole(line()), steps=300, key=KEY)
    np.testing.assert_allclose(result.theta["f"].slope, 3, atol=1e-4)
    np.testing.assert_allclose(result.theta["f"].offset, -2, atol=1e-4)


def test_equals_a_plain_optax_loop():
    batch, theta = line(), {"f": Line(jnp.float32(0), jnp.float32(0))}
    state = ADAM.init(theta)
    for step in range(25):
        grads = jax.grad(lambda t, step=step: squares(t, batch, step=step, key=KEY)[0])(theta)
        updates, state = ADAM.update(grads, state, theta)
        theta = optax.apply_updates(theta, updates)
    start = {"f": Line(0.0, 0.0)}
    for batches in (Whole(batch), [batch], lambda: iter([batch, batch])):
        result = fit(squares, start, ADAM, batches, steps=25, chunk=10, key=KEY)
        np.testing.assert_allclose(result.theta["f"].slope, theta["f"].slope, rtol=1e-6)
        np.testing.assert_allclose(result.theta["f"].offset, theta["f"].offset, rtol=1e-6)


def test_only_the_chosen_leaves_move():
    theta = {"f": Line(0.5, 0.25)}
    result = fit(
        squares, theta, SGD, Whole(line()), steps=5, trainable=field("offset"), key=KEY
    ).theta
    assert result["f"].slope == 0.5 and result["f"].offset != 0.25


def test_chunks_do_not_matter_and_a_fit_can_be_continued():
    data = {"x": np.arange(12, dtype=np.float32), "y": np.ones(12, np.float32)}
    data["x"] /= 12
    theta, draw = {"f": Line(0.0, 0.0)}, Draw(data, 4)
    once = fit(squares, theta, ADAM, draw, steps=30, chunk=30, key=KEY)
    chunked = fit(squares, theta, ADAM, draw, steps=30, chunk=7, key=KEY)
    now = start(theta, ADAM, key=KEY)
    for source, count in sources(draw, 0, 30, 11):
        now, _ = advance(squares, now, ADAM, source, steps=count)
    for other in (chunked, now):
        assert jax.tree.all(jax.tree.map(np.array_equal, once.train, other.train))
        assert int(other.step) == 30


def test_project_runs_after_each_step_and_may_write_held_leaves():
    def project(value, aux, *, step):
        f = value["f"]
        return {"f": Line(jnp.clip(f.slope, 0, 1), f.offset), "count": value["count"] + 1}

    theta = {"f": Line(0.0, 0.0), "count": 0}
    result = fit(squares, theta, SGD, Whole(line()), steps=20, project=project, key=KEY).theta
    assert result["f"].slope == 1 and result["count"] == 20


def test_draw_takes_distinct_samples_and_depends_on_the_key():
    draw = Draw({"x": jnp.arange(10)}, 6)
    a, b = (np.sort(draw.take(jnp.int32(0), jax.random.key(i))["x"]) for i in (0, 1))
    assert len(set(a.tolist())) == 6 and a.tolist() != b.tolist()
    with pytest.raises(DataError, match="batch of 11 cannot be drawn from 10"):
        Draw({"x": jnp.arange(10)}, 11).take(jnp.int32(0), KEY)


def test_a_stream_is_cycled_and_metrics_are_means_over_a_chunk():
    batches = [{"x": np.full(3, i, np.float32)} for i in range(3)]
    log = []
    fit(
        seen,
        {"w": 1.0},
        optax.sgd(0.0),
        batches,
        steps=7,
        chunk=4,
        progress=lambda *event: log.append(event),
        key=KEY,
    )
    assert [event[:2] for event in log] == [(4, 7), (7, 7)]
    assert log[0][2] == {"x": (0 + 3 + 6 + 0) / 4, "step": 1.5, "loss": 9 / 4}
    assert log[1][2]["x"] == (3 + 6 + 0) / 3


def test_a_stream_of_changing_shapes_is_cut_there():
    batches = [{"x": np.zeros(n)} for n in (4, 4, 2)]
    found = [(s.data["x"].shape, n) for s, n in sources(batches, 0, 7, 10)]
    assert found == [((2, 4), 2), ((2, 2), 1), ((2, 4), 2), ((2, 2), 1), ((2, 4), 1)]


def test_equal_problems_share_one_program():
    traces = []

    def loss(value, batch, *, step, key):
        traces.append(1)
        return squares(value, batch, step=step, key=key)

    for slope in (0.0, 1.0):
        for steps in (3, 10, 7):
            fit(loss, {"f": Line(slope, 0.0)}, SGD, Whole(line()), steps=steps, chunk=5, key=KEY)
    assert len(traces) == 2  # the shapes of aux, and the gradient: once each


THETA = {
    "a.weight": Affine(np.ones(3, np.float32), np.zeros(3, np.int32), np.float32(4)),
    "b": {"c": Affine(1.0, 0, 8.0)},
}


@pytest.mark.parametrize(
    ("trainable", "count"),
    [
        (everything, 4),  # two scales and two widths; integer zero points never train
        (field("scale"), 2),
        (field("scale", "bits"), 4),
        (named("a.*"), 2),
        (named("c"), 2),
        (named("a.*", "b"), 4),
    ],
)
def test_trainable(trainable, count):
    train, held = split(THETA, trainable)
    assert len(jax.tree.leaves(train)) == count
    assert len(jax.tree.leaves(held)) == 6 - count
    assert jax.tree.all(jax.tree.map(np.array_equal, merge(train, held), THETA))


def test_errors():
    with pytest.raises(ConfigError, match=r"selects none of the 6 leaves.*a\.weight"):
        split(THETA, field("logit"))
    with pytest.raises(DataError, match="batches are empty"):
        fit(squares, {"f": Line(0.0, 0.0)}, SGD, [], steps=3, key=KEY)
    with pytest.raises(DataError, match="not finite within steps 0 to 5"):
        bad = Whole({"x": np.full(2, np.nan, np.float32), "y": np.ones(2, np.float32)})
        fit(squares, {"f": Line(0.0, 0.0)}, SGD, bad, steps=5, key=KEY)
