"""What a training can be made of: features, gradual, stochastic, half precision, freezing, nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from built import built, node
from flax import nnx

import jqnt
from jqnt import ranges
from jqnt.errors import ConfigError
from jqnt.learn.divergence import kl, with_targets
from jqnt.learn.fit import fit
from jqnt.learn.method import Method, task
from jqnt.learn.oscillation import dampening
from jqnt.learn.source import Whole
from jqnt.learn.wraps import gradual, stochastic
from jqnt.parametrize import parametrize

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.normal(size=(32, 2, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    weights = {
        "stem": RNG.normal(size=(6, 2, 3, 3)) * 0.4,
        "deep": RNG.normal(size=(6, 1, 3, 3)) * 0.4,
        "head": RNG.normal(size=(5, 6)),
        "bias": RNG.normal(size=5),
    }
    nodes = [
        node("Conv", "x stem", "a", pads=[1] * 4),
        node("Relu", "a", "ra"),
        node("Conv", "ra deep", "b", group=6, pads=[1] * 4),
        node("Relu", "b", "rb"),
        node("GlobalAveragePool", "rb", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f head bias", "y", transB=1),
    ]
    graph, params, _ = jqnt.import_onnx(built(nodes, {"x": ["N", 2, 6, 6]}, ["y"], weights))
    plan = jqnt.plan(graph, jqnt.scheme("int3", "uint4"))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, [{"x": X}])
    return graph, params, plan, parametrize(theta, plan, ranges.lsq)


def lossed(network, method, step=0, key=KEY):
    """The loss, and the gradient, of one batch."""
    graph, params, plan, theta = network
    made = task(graph, params, theta, plan, kl, method)
    batch = with_targets(jqnt.lower(graph), params, [{"x": X}], method.features)[0]
    return jax.value_and_grad(
        lambda value: made.loss(value, batch, step=jnp.int32(step), key=key)[0], allow_int=True
    )(made.value)


def test_features_and_penalties_add_up(network):
    graph, params, plan, theta = network
    plain, _ = lossed(network, Method())
    both, _ = lossed(
        network,
        Method(features=("rb",), feature_weight=0.5, penalties=(dampening(lambda step: 2.0),)),
    )
    apply, qparams = jqnt.lower(graph), jqnt.bind(theta, plan)
    real, made = (np.asarray(apply(params, q, {"x": X}, want=("rb",))["rb"]) for q in ({}, qparams))
    feature = ((made - real) ** 2).mean() / (real**2).mean()
    bins = sum(
        ((np.asarray(qparams[n](jnp.asarray(params[n]))) - params[n]) ** 2).sum()
        for n in ("stem", "deep", "head")
    )
    # Min-max ranges of strict or full grids: nothing is clipped by more than rounding.
    np.testing.assert_allclose(both, plain + 0.5 * feature + 2 * bins, rtol=2e-2)
    with pytest.raises(Exception, match="no tensor 'none'"):
        task(graph, params, theta, plan, kl, Method(features=("none",)))


def test_gradual_goes_from_float_activations_to_all(network):
    graph, params, plan, theta = network
    losses = [float(lossed(network, Method(wraps=(gradual(10),)), step)[0]) for step in (0, 5, 10)]
    weights = {n: q for n, q in jqnt.bind(theta, plan).items() if n in params}
    batch = with_targets(jqnt.lower(graph), params, [{"x": X}])[0]
    only = jqnt.lower(graph)(params, weights, {"x": X})
    np.testing.assert_allclose(losses[0], kl(only, batch), rtol=1e-4)
    np.testing.assert_allclose(losses[2], lossed(network, Method())[0], rtol=1e-5)
    assert losses[1] not in (losses[0], losses[2])


def test_stochastic_weights_differ_by_key_and_step_on_average_do_not(network):
    _, params, plan, theta = network
    wrap = stochastic()
    qparams = jqnt.bind(theta, plan)
    w = jnp.asarray(params["stem"])
    draws = np.stack(
        [
            wrap(qparams, params, step=0, key=jax.random.fold_in(KEY, i))["stem"](w)
            for i in range(200)
        ]
    )
    scale = np.asarray(theta["stem"].scale).reshape(-1, 1, 1, 1)
    inside = np.abs(w) < 3 * scale
    assert np.any(draws[0] != draws[1])
    assert np.abs((draws.mean(0) - w) / scale)[inside].max() < 5 * 0.5 / np.sqrt(200)
    a, b = (lossed(network, Method(wraps=(wrap,)), key=jax.random.key(i))[0] for i in (0, 1))
    assert float(a) != float(b)


def test_half_precision_computes_in_bfloat16_and_keeps_float32(network):
    exact, slope = lossed(network, Method())
    half, coarse = lossed(network, Method(half=True))
    assert abs(float(half) - float(exact)) < 0.05 * abs(float(exact)) + 0.02
    assert float(half) != float(exact)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(coarse), strict=True):
        assert a.dtype == b.dtype
    w, v = (np.ravel(s["params"]["head"]) for s in (slope, coarse))
    assert w @ v / np.linalg.norm(w) / np.linalg.norm(v) > 0.98
    graph, params, plan, theta = network
    made = task(graph, params, theta, plan, kl, Method(half=True))
    batch = with_targets(jqnt.lower(graph), params, [{"x": X}])[0]
    text = str(jax.make_jaxpr(lambda v: made.loss(v, batch, step=0, key=KEY)[0])(made.value))
    assert "bf16[32,6,6,6] = convolve" in text or "bf16" in text.split("convolve")[0][-40:]


def test_frozen_weights_stay_on_their_codes(network):
    """Everything that ever turned freezes; the rest goes on training."""
    graph, params, plan, theta = network
    method = Method(freeze_above=lambda step: 0.005, optimizer=optax.sgd(0.3), kinds=("weights",))
    made = task(graph, params, theta, plan, kl, method)
    batch = with_targets(jqnt.lower(graph), params, [{"x": X}])[0]
    value = fit(
        made.loss, made.value, optax.sgd(0.3), Whole(batch), steps=60,
        trainable=lambda path, leaf: path[0].key == "params", project=made.project, key=KEY,
    ).theta  # fmt: skip
    frozen = 0
    for name, state in value["oscillation"].items():
        on = np.asarray(state.frozen) > 0
        frozen += on.sum()
        grid = theta[name].affine
        w = np.asarray(value["params"][name])
        scale = np.asarray(grid.granularity.expand(grid.scale, w.shape))
        held = np.broadcast_to(np.round(np.asarray(state.mean)) * scale, w.shape)
        np.testing.assert_allclose(w[on], held[on], rtol=1e-6)
        assert np.any(w[~on] != params[name][~on])
    assert frozen > 0


def test_augmented_inputs_are_taught_in_the_step(network):
    """The loss is that of the other inputs with the float network's answers to them."""
    graph, params, plan, theta = network

    def augment(inputs, *, key):
        return {n: x + jax.random.normal(key, x.shape) for n, x in inputs.items()}

    made = task(graph, params, theta, plan, kl, Method(augment=augment), params)
    stale = {"x": jnp.asarray(X), "target:y": jnp.full((len(X), 5), jnp.nan)}
    losses = [made.loss(made.value, stale, step=0, key=jax.random.key(i))[0] for i in (0, 1)]
    moved = augment({"x": jnp.asarray(X)}, key=jax.random.fold_in(jax.random.key(0), 0))
    batch = with_targets(jqnt.lower(graph), params, [moved])[0]
    wanted = kl(jqnt.lower(graph)(params, jqnt.bind(theta, plan), moved), batch)
    np.testing.assert_allclose(losses[0], wanted, rtol=1e-5)
    assert float(losses[0]) != float(losses[1])
    method = Method(augment=augment, kinds=("weights",), optimizer=optax.sgd(0.1))
    trained, _ = jqnt.qat(
        graph, params, theta, plan, [{"x": X}], params, steps=20, batch_size=32, method=method,
        key=KEY,
    )  # fmt: skip
    assert np.any(trained["stem"] != params["stem"])
    with pytest.raises(ConfigError, match="give the teacher's params"):
        task(graph, params, theta, plan, kl, method)


def test_wrong_methods():
    with pytest.raises(ConfigError, match="norm is 'kept' or 'batch', not 'frozen'"):
        Method(norm="frozen")
    with pytest.raises(ConfigError, match="at least one gradient"):
        Method(accumulate=0)


@pytest.mark.parametrize("make", [ranges.min_max, ranges.dsq])
def test_every_parametrization_trains_through_qat(network, make):
    graph, params, plan, _ = network
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, [{"x": X}])
    theta = parametrize(theta, plan, make)
    trained, learned = jqnt.qat(
        graph, params, theta, plan, [{"x": X}], params, steps=30, batch_size=32,
        method=Method(average=0.9, accumulate=2), key=KEY,
    )  # fmt: skip
    batch = with_targets(jqnt.lower(graph), params, [{"x": X}])[0]
    apply = jqnt.lower(graph)
    before = kl(apply(params, jqnt.bind(theta, plan), {"x": X}), batch)
    after = kl(apply(trained, jqnt.bind(learned, plan), {"x": X}), batch)
    assert float(after) < float(before)
    hard, encodings = jqnt.freeze(graph, trained, jqnt.bind(learned, plan))
    thawed = apply(hard, jqnt.thaw(encodings), {"x": X})
    np.testing.assert_allclose(kl(thawed, batch), after, rtol=1e-3, atol=1e-5)


def test_the_nnx_view_trains_quantizers_alone(network):
    """nnx.Optimizer(model, tx, wrt=QuantParam), against the functional gradient and SGD."""
    graph, params, plan, theta = network
    model = jqnt.Model(graph, params, jqnt.bind(theta, plan))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=jqnt.QuantParam)
    wanted = jqnt.lower(graph)(params, {}, {"x": X})["y"]

    def loss(model):
        return jnp.mean((model(jnp.asarray(X)) - wanted) ** 2)

    grads = nnx.grad(loss, argnums=nnx.DiffState(0, jqnt.QuantParam))(model)
    before = np.asarray(model.quantizers["ra"]["scale"].get_value())
    optimizer.update(model, grads)

    def functional(qparams):
        return jnp.mean((jqnt.lower(graph)(params, qparams, {"x": X})["y"] - wanted) ** 2)

    slope = jax.grad(functional)(jqnt.bind(theta, plan))["ra"].scale
    after = np.asarray(model.quantizers["ra"]["scale"].get_value())
    np.testing.assert_allclose(after, before - 0.1 * slope, rtol=1e-5)
    np.testing.assert_array_equal(model.params["stem"].get_value(), params["stem"])
    assert np.asarray(model.quantizers["ra"]["bits"].get_value()) == 4
