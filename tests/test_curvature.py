"""Hessian traces against the Hessian itself, squared gradients against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.errors import ConfigError, DataError
from jqnt.graph.lower import lower
from jqnt.learn.curvature import hessian_traces, perturbation_table, squared_gradients
from jqnt.learn.divergence import cross_entropy
from jqnt.quantizers import Affine

KEY = jax.random.key(0)


def affine(scale, bits):
    return Affine(jnp.float32(scale), jnp.float32(0), jnp.float32(bits))


def test_traces_of_a_quadratic():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 5)).astype(np.float32)
    a, b = a @ a.T, b @ b.T

    def loss(params, batch):
        u, v = params["u"], params["v"]
        return 0.5 * u @ a @ u + 0.5 * v @ b @ v + (u @ v) * batch["c"]

    params = {"u": np.ones(5, np.float32), "v": np.zeros(5, np.float32)}
    found = hessian_traces(
        loss, params, ["u", "v"], {"c": jnp.float32(0.3)}, tolerance=0.01, most=2000, key=KEY
    )
    for name, matrix in (("u", a), ("v", b)):
        trace = found[name]
        assert abs(trace.value - np.trace(matrix)) < 4 * trace.error + 1e-3
        assert 0 < trace.error < 0.1 * trace.value and trace.elements == 5
    rough = hessian_traces(
        loss, params, ["u", "v"], {"c": jnp.float32(0.3)}, tolerance=0.5, key=KEY
    )
    assert rough["u"].error > found["u"].error


def test_trace_of_a_convolution_is_that_of_its_hessian():
    c = case()
    apply = lower(c.graph)
    batch = {"x": c.batches[0]["x"][:4], "labels": c.batches[0]["labels"][:4]}

    def loss(params, batch):
        return cross_entropy(apply(params, {}, {"x": batch["x"]}), batch)

    w = jnp.asarray(c.params["wc"])
    flat = jax.jit(jax.hessian(lambda v: loss({**c.params, "wc": v.reshape(w.shape)}, batch)))(
        w.ravel()
    )
    expected = float(jnp.trace(flat))
    found = hessian_traces(loss, c.params, ["wc", "wg"], batch, most=400, key=KEY)["wc"]
    assert abs(found.value - expected) < 4 * found.error + 1e-3 * abs(expected)
    table = perturbation_table({"wc": found}, c.params, {"wc": [affine(0.5, 8), affine(0.1, 8)]})[
        "wc"
    ]
    noise = (np.round(c.params["wc"] / 0.5) * 0.5 - c.params["wc"]) ** 2
    assert table[0] == pytest.approx(found.value / w.size * noise.sum(), rel=1e-4)
    assert table[1] < table[0]


def test_squared_gradients_equal_autodiff_sample_by_sample():
    c = case()
    apply = lower(c.graph)
    batch = {"x": c.batches[0]["x"][:3], "labels": c.batches[0]["labels"][:3]}
    branches = {"wb": [affine(0.3, 4), affine(0.05, 8)], "rb": [affine(0.4, 4)]}

    def run(params, qparams, inputs, want=c.graph.outputs):
        return apply(params, qparams, {"x": inputs["x"]}, want=want)

    found = squared_gradients(run, c.params, branches, cross_entropy, batch)
    assert found["wb"].shape == (2,) and found["rb"].shape == (1,)

    def loss(w, sample):
        return cross_entropy(apply({**c.params, "wb": w}, {}, {"x": sample["x"]}), sample)

    w, scores = jnp.asarray(c.params["wb"]), []
    for n in range(3):
        sample = {name: value[n : n + 1] for name, value in batch.items()}
        g = np.asarray(jax.grad(loss)(w, sample))
        noise = np.round(np.asarray(w) / np.float32(0.05)) * 0.05 - np.asarray(w)
        scores.append(((g * noise) ** 2).sum() / 2)
    assert found["wb"][1] == pytest.approx(np.mean(scores), rel=1e-3)
    assert found["wb"][0] > found["wb"][1]

    tail = lower(c.graph, ("rb", "ra"), c.graph.outputs)
    values = apply(c.params, {}, {"x": batch["x"]}, want=("rb", "ra"))

    def after(rb, n):
        inputs = {"rb": rb, "ra": values["ra"][n : n + 1]}
        return cross_entropy(tail(c.params, {}, inputs), {"labels": batch["labels"][n : n + 1]})

    scores = []
    for n in range(3):
        x = values["rb"][n : n + 1]
        g = np.asarray(jax.grad(after)(x, n))
        noise = np.asarray(branches["rb"][0](x) - x)
        scores.append(((g * noise) ** 2).sum() / 2)
    assert found["rb"][0] == pytest.approx(np.mean(scores), rel=1e-3)


def test_bad_input():
    with pytest.raises(ConfigError, match="unknown params"):
        hessian_traces(lambda p, b: p["u"].sum(), {"u": np.ones(2)}, ["v"], {}, key=KEY)
    with pytest.raises(DataError, match="same, positive number"):
        squared_gradients(lambda *a: {}, {}, {}, lambda o, b: 0.0, {})
