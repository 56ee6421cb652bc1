"""Re-estimated batch norm: each layer's statistics in the quantized network, by numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.reestimate import reestimate_bn
from jqnt.quantizers import Affine
from jqnt.transforms.fold_bn import fold_bn

RNG = np.random.default_rng(0)


def network():
    params = {"w1": RNG.normal(size=(4, 3, 3, 3)), "w2": RNG.normal(size=(5, 4, 1, 1))}
    for i, n in ((1, 4), (2, 5)):
        params |= {f"s{i}": RNG.uniform(0.5, 2, n), f"t{i}": RNG.normal(size=n)}
        params |= {f"m{i}": np.zeros(n), f"v{i}": np.ones(n)}
    return built(
        [
            node("Conv", "x w1", "c1"),
            node("BatchNormalization", "c1 s1 t1 m1 v1", "z1"),
            node("Relu", "z1", "r1"),
            node("Conv", "r1 w2", "c2"),
            node("BatchNormalization", "c2 s2 t2 m2 v2", "y"),
        ],
        {"x": ["N", 3, 6, 6]},
        ["y"],
        params,
    )


def test_every_layer_has_the_statistics_of_its_input():
    graph, params, _ = import_onnx(network())
    q = {
        "w1": Affine(jnp.float32(0.7), jnp.float32(0), jnp.float32(3)),
        "r1": Affine(jnp.float32(0.3), jnp.float32(0), jnp.float32(3), signed=False),
    }
    x = RNG.normal(size=(10, 3, 6, 6)).astype(np.float32)
    found = reestimate_bn(graph, params, q, [{"x": x[:7]}, {"x": x[7:]}])
    values = lower(graph)(found, q, {"x": x}, want=("c1", "c2", "y"))
    for i in (1, 2):
        c = np.asarray(values[f"c{i}"], np.float64)
        np.testing.assert_allclose(found[f"m{i}"], c.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[f"v{i}"], c.var((0, 2, 3)), rtol=1e-3)
    y = np.asarray(values["y"], np.float64)
    np.testing.assert_allclose(y.mean((0, 2, 3)), params["t2"], atol=1e-3)
    assert all(np.array_equal(found[k], params[k]) for k in ("w1", "s1", "t2"))


def test_a_folded_network_is_refused():
    graph, params, _ = import_onnx(network())
    with pytest.raises(ConfigError, match="re-estimate before fold_bn"):
        reestimate_bn(*fold_bn(graph, params), {}, [{"x": np.zeros((1, 3, 6, 6), np.float32)}])
