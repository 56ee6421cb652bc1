"""Metrics against closed forms and plain numpy."""

import numpy as np
import pytest

from jqnt.errors import ConfigError, DataError
from jqnt.metrics import cosine, evaluator, metric_named, mse, top1, user_metric


def rng():
    return np.random.default_rng(0)


def test_top1_counts():
    logits = np.asarray([[1, 2, 0], [5, 1, 1], [0, 0, 9], [1, 0, 0]], np.float32)
    assert top1({"y": logits}, None, np.asarray([1, 0, 2, 2])) == 75.0
    with pytest.raises(DataError, match=r"labels have shape \[3\]"):
        top1({"y": logits}, None, np.zeros(3, int))


def test_cosine_is_the_angle():
    angle = np.linspace(0, 3, 7)
    y = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    r = np.tile([1.0, 0.0], (7, 1)) * 5
    np.testing.assert_allclose(cosine({"y": y}, {"y": r}, None), np.cos(angle).mean(), rtol=1e-12)
    zeros = np.zeros((2, 3))
    assert cosine({"y": zeros}, {"y": zeros}, None) == 1.0


def test_mse_of_a_known_noise():
    r = rng().normal(size=(50, 40))
    noise = np.where(rng().random(r.shape) < 0.5, 0.1, -0.1)
    np.testing.assert_allclose(mse({"y": r + noise}, {"y": r}, None), 0.01, rtol=1e-9)


def test_the_evaluator_pads_and_cuts():
    x, labels = rng().normal(size=(11, 3)), rng().integers(0, 3, 11)
    batches = [{"x": x[i : i + 4], "labels": labels[i : i + 4]} for i in range(0, 11, 4)]
    seen = []

    def run(inputs):
        seen.append(inputs["x"].shape)
        return {"y": inputs["x"]}

    value = evaluator(metric_named("top1"), batches, ["x"])(run)
    np.testing.assert_allclose(value, 100 * (x.argmax(1) == labels).mean())
    assert seen == [(4, 3)] * 3


def test_more_is_always_better():
    batches = [{"x": rng().normal(size=(4, 3))}]
    evaluate = evaluator(metric_named("mse"), batches, ["x"], reference=lambda i: {"y": 2 * i["x"]})
    assert evaluate(lambda i: {"y": 2 * i["x"]}) == 0
    assert evaluate(lambda i: {"y": 2 * i["x"] + 1}) == pytest.approx(-1)


def test_what_is_missing_is_said():
    batches = [{"x": np.zeros((4, 3))}]
    with pytest.raises(DataError, match="top1 needs labels"):
        evaluator(metric_named("top1"), batches, ["x"])
    with pytest.raises(ConfigError, match="compares with a reference"):
        evaluator(metric_named("mse"), batches, ["x"])
    with pytest.raises(ConfigError, match=r"no metric 'top2'.*did you mean 'top1'"):
        metric_named("top2")


def test_a_function_of_the_user():
    batches = [{"x": np.ones((4, 3)), "labels": np.arange(4)}]
    evaluate = evaluator(user_metric("m:f", lambda o, y: o["y"].sum() + y.sum()), batches, ["x"])
    assert evaluate(lambda i: {"y": i["x"]}) == 18
    with pytest.raises(DataError, match="metric m:f raised KeyError"):
        evaluator(user_metric("m:f", lambda o, y: o["z"]), batches, ["x"])(lambda i: {"y": i["x"]})
    with pytest.raises(DataError, match="metric m:f gave nan"):
        evaluator(user_metric("m:f", lambda o, y: np.nan), batches, ["x"])(lambda i: {"y": i["x"]})
