"""Quality of tensors against float64 numpy."""

import numpy as np
import pytest

from jqnt.errors import DataError
from jqnt.learn.quality import tensor_quality

RNG = np.random.default_rng(0)
BATCHES = [{"x": RNG.normal(size=(4, 8)).astype(np.float32), "labels": 0} for _ in range(3)]


def reference(inputs):
    return {"a": inputs["x"], "b": inputs["x"] * 2, "c": inputs["x"] * 0}


def run(inputs):
    x = inputs["x"]
    return {"a": x, "b": x * 2 + 0.1, "c": x * 0 + 1}


def test_it_equals_numpy_over_all_batches():
    found = tensor_quality(reference, run, ["a", "b", "c"], BATCHES)
    x = np.concatenate([b["x"] for b in BATCHES]).astype(np.float64)
    r, v = 2 * x, 2 * x + 0.1
    assert found["a"].sqnr_db == np.inf and found["a"].cosine == 1
    np.testing.assert_allclose(
        found["b"].sqnr_db, 10 * np.log10((r**2).sum() / ((r - v) ** 2).sum()), rtol=1e-5
    )
    cosine = (r * v).sum() / np.sqrt((r**2).sum() * (v**2).sum())
    np.testing.assert_allclose(found["b"].cosine, cosine, rtol=1e-6)
    assert found["c"].sqnr_db == -np.inf and found["c"].cosine == 0


def test_no_batches_are_an_error():
    with pytest.raises(DataError, match="no batches"):
        tensor_quality(reference, run, ["a"], [])
