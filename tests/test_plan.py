"""bind: tied tensors, biases, and joint choices against their definition."""

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.formats import Granularity, Integer, format_named
from jqnt.plan import Choice, Options, Plan, Spec, bind
from jqnt.quantizers import Affine, Cast, Mixture

ACT = Spec(Integer(8))


def affine(scale, bits=8, **static):
    scale = jnp.asarray(scale, jnp.float32)
    return Affine(scale, jnp.zeros_like(scale), jnp.float32(bits), **static)


def test_tied_tensors_share_one_quantizer():
    q = affine(0.1)
    bound = bind({"a": q}, Plan({"a": ACT}, tied={"b": "a", "c": "a"}))
    assert bound["b"] is bound["c"] is q
    grads = jax.grad(
        lambda theta: sum(
            b(jnp.ones(3) * 0.234).sum() for b in bind(theta, Plan({"a": ACT}, {"b": "a"})).values()
        )
    )({"a": q})
    alone = jax.grad(lambda q: q(jnp.ones(3) * 0.234).sum())(q)
    np.testing.assert_allclose(grads["a"].scale, 2 * alone.scale, rtol=1e-6)


def test_a_bias_follows_from_its_two_scales():
    w = affine([0.5, 0.25], 4, granularity=Granularity(0))
    bound = bind({"x": affine(0.125), "w": w}, Plan({}, biases={"b": ("x", "w")}))
    b = np.asarray([0.3, -0.7], np.float32)
    s = np.float32(0.125) * np.asarray([0.5, 0.25], np.float32)
    np.testing.assert_array_equal(np.asarray(bound["b"](jnp.asarray(b))), np.rint(b / s) * s)


def test_a_bias_of_a_float_group_stays_float():
    bound = bind(
        {"x": Cast(format_named("float16")), "w": affine(0.5)}, Plan({}, biases={"b": ("x", "w")})
    )
    assert "b" not in bound


def test_a_choice_feeds_both_quantizers_with_its_marginals():
    w4, w8 = Spec(Integer(4, signed=True)), Spec(Integer(8, signed=True))
    a8, a16 = Spec(Integer(8)), Spec(Integer(16))
    choice = Choice(("w", "x"), ((w4, a8), (w8, a8), (w8, a16)))
    branches = {
        "w": (affine(0.5, 4), affine(0.05, 8)),
        "x": (affine(0.1, 8, signed=False), affine(0.01, 16, signed=False)),
    }
    logit = jnp.asarray([0.3, -1.0, 2.0])
    plan = Plan({}, choices={"g": choice})
    bound = bind({"g": Options(logit, branches)}, plan, temperature=0.5)
    p = np.exp(np.asarray(logit) / 0.5)
    p /= p.sum()
    w, x = bound["w"], bound["x"]
    assert isinstance(w, Mixture) and isinstance(x, Mixture)
    np.testing.assert_allclose(w.probability, [p[0], p[1] + p[2]], rtol=1e-6)
    np.testing.assert_allclose(x.probability, [p[0] + p[1], p[2]], rtol=1e-6)
