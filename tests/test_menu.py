"""Candidates as rows of numbers against the branches themselves."""

import jax
import jax.numpy as jnp
import numpy as np
from searched import case

from jqnt.formats import FP16
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.graph.layout import last_quantizer
from jqnt.graph.lower import lower
from jqnt.learn.divergence import with_targets
from jqnt.learn.menu import menu
from jqnt.learn.trial import trial
from jqnt.quantizers import Affine, Cast, SoftRound

RNG = np.random.default_rng(0)


def affine(scale, bits, granularity=PER_TENSOR):
    scale = jnp.asarray(scale, jnp.float32)
    return Affine(scale, jnp.zeros_like(scale), jnp.float32(bits), granularity=granularity)


def test_a_row_holds_the_branch_that_it_names():
    channels = Granularity(axis=0)
    large = RNG.normal(size=(160, 128)).astype(np.float32)
    logits = [RNG.normal(size=large.shape).astype(np.float32) for _ in range(2)]
    soft = [
        SoftRound(jnp.float32(0.1), jnp.float32(0), jnp.float32(b), jnp.asarray(x))
        for b, x in enumerate(logits, 3)
    ]
    branches = {
        "mixed": (
            affine(0.3, 4),
            Cast(FP16),
            affine(0.02, 8),
            affine([0.1, 0.2, 0.3], 4, channels),
        ),
        "large": (affine(0.5, 2), *soft),
        "image": (affine(0.2, 8), affine(0.3, 4)),
    }
    values = {
        "mixed": RNG.normal(size=(3, 5)).astype(np.float32),
        "large": large,
        "image": RNG.normal(size=(2, 4, 100, 100)).astype(np.float32),
    }
    values = {name: jnp.asarray(x) for name, x in values.items()}
    own = menu(branches)
    rows = np.array([[RNG.integers(-1, len(b)) for b in branches.values()] for _ in range(12)])
    packed = own.rows(rows)

    @jax.jit
    def run(kinds, packed, i):
        made = kinds.quantizers(jax.tree.map(lambda v: v[i], packed))
        return {name: made[name](x) for name, x in values.items()}

    for i, row in enumerate(rows):
        found = run(own.kinds, packed, i)
        for (name, x), k in zip(values.items(), row, strict=True):
            expected = x if k < 0 else jax.jit(lambda q, x: q(x))(branches[name][k], x)
            np.testing.assert_array_equal(found[name], expected)
    assert run._cache_size() == 1
    assert set(rows[:, 0]) >= {-1, 0, 1, 2, 3}


def test_the_last_axis_is_the_channels_there_too():
    weight = jnp.asarray(RNG.normal(size=(2, 3, 4, 4)), jnp.float32)
    scales = Granularity(axis=1)
    branches = (affine([0.1, 0.2, 0.3], 4, scales), affine([0.3, 0.1, 0.2], 8, scales))
    own = menu({"w": branches})
    first = jax.tree.map(lambda v: jnp.asarray(v)[0], own.rows(np.array([[1]])))
    moved = last_quantizer(own.kinds.quantizers(first)["w"], weight.ndim)
    assert moved is not None
    found = moved(jnp.moveaxis(weight, 1, -1))
    np.testing.assert_array_equal(jnp.moveaxis(found, -1, 1), branches[1](weight))


def test_the_program_of_trials_gives_the_float_outputs():
    c = case()
    own = trial(c.graph, c.params, c.plan)
    expected = with_targets(lower(c.graph), c.params, c.batches)
    for a, b in zip(own.targets(c.params, c.theta, c.batches), expected, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["target:y"], b["target:y"], rtol=1e-5, atol=1e-6)
