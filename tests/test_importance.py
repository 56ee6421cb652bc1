"""Fisher information against its closed forms; blocks that are weighted with it."""

import jax
import numpy as np
import pytest

from jqnt.errors import DataError
from jqnt.graph.ir import Graph, Node
from jqnt.learn.importance import importance

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def linear(out):
    nodes = (
        Node("Relu", "relu", ("x",), ("r",), {}),
        Node("Gemm", "fc", ("r", "w"), ("y",), {"transB": 1}),
    )
    w = RNG.normal(size=(out, 5)).astype(np.float32)
    return Graph("g", nodes, ("x",), ("y",), ("w",), {}), {"w": w}


def test_of_class_scores_it_is_that_of_softmax():
    """diag(W^T (diag p - p p^T) W), in float64, over its mean; sampled with 4,000 draws."""
    graph, params = linear(3)
    x = np.abs(RNG.normal(size=(1, 5))).astype(np.float32)
    batches = [{"x": np.repeat(x, 1000, 0)} for _ in range(4)]
    (found,) = importance(graph, params, batches, ["r"], key=KEY).values()
    w = params["w"].astype(np.float64)
    p = np.exp(x[0] @ w.T)
    p /= p.sum()
    wanted = np.einsum("ik,ij,jk->k", w, np.diag(p) - np.outer(p, p), w)
    assert found.shape == (1, 5)
    np.testing.assert_allclose(found[0], wanted / wanted.mean(), rtol=0.15, atol=0.02)


def test_of_other_outputs_it_is_that_of_a_normal_distribution():
    """One output: diag(W^T W) of any sample."""
    graph, params = linear(1)
    batches = [{"x": RNG.normal(size=(500, 5)).astype(np.float32)} for _ in range(4)]
    (found,) = importance(graph, params, batches, ["r"], key=KEY).values()
    wanted = (params["w"].astype(np.float64) ** 2)[0]
    np.testing.assert_allclose(found[0], wanted / wanted.mean(), rtol=1e-4)


def test_what_is_refused():
    graph, params = linear(2)
    with pytest.raises(DataError, match="no batches"):
        importance(graph, params, [], ["r"], key=KEY)
