"""Statistics, high-bias absorption, bias correction: closed forms against sampling and numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node

from jqnt.errors import ConfigError, DataError
from jqnt.formats import Granularity
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.quantizers import Affine
from jqnt.transforms.absorb_bias import absorb_bias
from jqnt.transforms.correct_bias import clipped_mean, correct_bias
from jqnt.transforms.fold_bn import fold_bn
from jqnt.transforms.statistics import bn_statistics, measured_statistics

RNG = np.random.default_rng(0)
SIX = {"zero": np.float32(0), "six": np.float32(6)}


def network(reader="Conv", act="Relu", bias=True):
    """Conv, BN, activation, then a layer with, or without, a bias of its own."""
    clip = act == "Clip"
    last = f"r w2{' b2' if bias else ''}"
    tail = [node("Conv", last, "y")]
    if reader == "Gemm":
        flat = [node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f")]
        tail = [*flat, node("Gemm", last.replace("r ", "f "), "y", alpha=0.5, beta=2.0)]
    return built(
        [
            node("Conv", "x w1", "c"),
            node("BatchNormalization", "c s t m v", "z"),
            node(act, "z zero six" if clip else "z", "r"),
            *tail,
        ],
        {"x": ["N", 3, 6, 6]},
        ["y"],
        {
            "w1": RNG.normal(size=(4, 3, 1, 1)),
            "s": np.array([1.0, 0.5, 0.2, 1.0]),
            "t": np.array([0.0, 4.0, 3.0, -1.0]),
            "m": np.zeros(4),
            "v": np.ones(4),
            "w2": RNG.normal(size=(4, 5) if reader == "Gemm" else (5, 4, 3, 3)),
            **({"b2": RNG.normal(size=5)} if bias else {}),
            **(SIX if clip else {}),
        },
    )


def test_measured_statistics_are_those_of_numpy_over_batches_of_any_size():
    graph, params, _ = import_onnx(network())
    x = 100 + RNG.normal(size=(9, 3, 6, 6)).astype(np.float32)
    batches = [{"x": x[:4]}, {"x": x[4:]}]
    found = measured_statistics(graph, params, ["z"], batches)["z"]
    z = np.asarray(lower(graph)(params, {}, {"x": x}, want=("z",))["z"], np.float64)
    np.testing.assert_allclose(found.mean, z.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, z.std((0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(found.largest, np.abs(z).max((0, 2, 3)), rtol=1e-6)
    with pytest.raises(DataError, match="no batches"):
        measured_statistics(graph, params, ["z"], [])


def test_batch_norm_promises_its_statistics():
    graph, params, _ = import_onnx(network())
    found = bn_statistics(graph, params)["z"]
    np.testing.assert_allclose(found.mean, [0, 4, 3, -1])
    np.testing.assert_allclose(found.deviation, [1, 0.5, 0.2, 1], rtol=1e-6)
    folded, _ = fold_bn(graph, params)
    assert "z" in folded.tensors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reader", ["Conv", "Gemm"])
def test_absorption_keeps_the_function_where_nothing_falls_below(reader, bias):
    graph, params, _ = import_onnx(network(reader, bias=bias))
    statistics = bn_statistics(graph, params)
    graph, params = fold_bn(graph, params)
    x = RNG.normal(size=(8, 3, 6, 6)).astype(np.float32)
    x = np.clip(x, -1, 1) / 3  # nothing three deviations below the mean
    before = lower(graph)(params, {}, {"x": x}, want=("r", "y"))
    new_graph, new = absorb_bias(graph, params, statistics)
    after = lower(new_graph)(new, {}, {"x": x}, want=("r", "y"))
    scale = np.abs(before["y"]).max()
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-5 * scale)
    # c = max(0, B - 3 |scale|) = (0, 2.5, 2.4, 0)
    moved = np.asarray(before["r"] - after["r"]).mean((0, 2, 3))
    np.testing.assert_allclose(moved, [0, 2.5, 2.4, 0], atol=1e-4)


def test_absorption_leaves_what_it_would_change():
    graph, params, _ = import_onnx(network(act="Clip"))
    statistics = bn_statistics(graph, params)
    folded, params = fold_bn(graph, params)
    again, same = absorb_bias(folded, params, statistics)
    assert again is folded and all(same[k] is v for k, v in params.items())
    graph, params, _ = import_onnx(network())
    folded, params = fold_bn(graph, params)
    wrong = {"z": statistics["z"]._replace(mean=np.zeros(3))}
    with pytest.raises(ConfigError, match="3 channels; it has 4"):
        absorb_bias(folded, params, wrong)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, np.inf)]
)
def test_the_clipped_mean_is_that_of_samples(low, high):
    mean, deviation = np.array([0.0, 2.0, -3.0, 5.5]), np.array([1.0, 0.5, 2.0, 0.0])
    z = mean + deviation * RNG.normal(size=(400_000, 4))
    found = clipped_mean(mean, deviation, low, high)
    np.testing.assert_allclose(found, np.clip(z, low, high).mean(0), atol=0.012)


@pytest.mark.parametrize("act", ["Relu", "Clip"])
@pytest.mark.parametrize("reader", ["Conv", "Gemm"])
def test_correction_takes_the_mean_error_away(act, reader):
    """On inputs that are as normal as the statistics say, against the float network's mean."""
    graph, params, _ = import_onnx(network(reader, act))
    statistics = bn_statistics(graph, params)
    graph, params = fold_bn(graph, params)
    # Inputs that make z normal with the promised mean and deviation.
    w1, b1 = np.asarray(params["w1"], np.float64)[:, :, 0, 0], params["w1_bias"]
    x = RNG.normal(size=(300, 3, 6, 6)).astype(np.float32)
    z = np.einsum("oc,nchw->nohw", w1, x) + np.asarray(b1).reshape(1, -1, 1, 1)
    own = {"z": statistics["z"]._replace(mean=z.mean((0, 2, 3)), deviation=z.std((0, 2, 3)))}
    quantizer = Affine(jnp.full(5, 0.8), jnp.zeros(5), jnp.float32(3), granularity=Granularity(0))
    if reader == "Gemm":
        quantizer = Affine(jnp.float32(0.8), jnp.float32(0), jnp.float32(3))
    q = {"w2": quantizer}
    graph2, corrected = correct_bias(graph, params, q, own)
    axes = (0,) if reader == "Gemm" else (0, 2, 3)

    def offset(graph, params, q):
        y = lower(graph)(params, q, {"x": x})["y"] - lower(graph)(float_params, {}, {"x": x})["y"]
        return np.abs(np.asarray(y).mean(axes)).max()

    float_params = params
    before, after = offset(graph, params, q), offset(graph2, corrected, q)
    assert after < 0.1 * before
