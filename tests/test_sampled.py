"""Reconstruction from samples: pieces of a graph, their loss, gains over nearest, sharing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from test_reconstruct import KEY, W3A8, calibrated, residual

from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.shapes import infer_shapes
from jqnt.learn.adaround import adaround
from jqnt.learn.blocks import blocks_of, layers_of
from jqnt.learn.piece import compiled, piece_of
from jqnt.learn.reads import reads
from jqnt.learn.sampled import reconstruct_samples
from jqnt.plan import bind
from jqnt.quantizers import Affine, Dropped, SoftRound
from jqnt.rules import Rule


def found_in(graph, params):
    return reads(graph, infer_shapes(graph, params), ("w1", "w2", "w3", "w4"))


def test_layers_end_after_their_activation():
    graph, params = residual()
    spans = layers_of(graph, found_in(graph, params))
    ends = [(s.starts, s.end, s.weights) for s in spans]
    assert ends == [
        (("x",), "r1", ("w1",)),
        (("r1",), "r2", ("w2",)),
        (("r2",), "c3", ("w3",)),
        (("f",), "y", ("w4",)),
    ]


def test_blocks_are_cut_where_one_tensor_flows():
    graph, params = residual()
    spans = blocks_of(graph, found_in(graph, params), least=1)
    assert [(s.starts, s.end, s.weights) for s in spans] == [
        (("x",), "r1", ("w1",)),
        (("r1",), "f", ("w2", "w3")),
        (("f",), "y", ("w4",)),
    ]
    merged = blocks_of(graph, found_in(graph, params), least=2)
    assert [s.weights for s in merged] == [("w1", "w2", "w3"), ("w4",)]
    assert merged[0].starts == ("x",) and merged[0].end == "f"


def test_a_block_computes_what_the_graph_does():
    graph, params = residual()
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 6)).astype(np.float32)
    whole = lower(graph)(params, {}, {"x": x}, want=("r1", "f", "y"))
    for span in blocks_of(graph, found_in(graph, params), least=1):
        block = piece_of(graph, span.starts, (span.end,))
        given = {block.names[s]: whole.get(s, x) for s in span.starts}
        inner = {block.names[n]: v for n, v in params.items() if n in block.names}
        y = compiled(block)(inner, {}, given)[block.end]
        np.testing.assert_allclose(y, whole[span.end], rtol=1e-4, atol=1e-4)


def test_blocks_of_equal_structure_are_equal():
    graph, params = residual()
    spans = blocks_of(graph, found_in(graph, params), least=1)
    first, second = (piece_of(graph, spans[i].starts, (spans[i].end,)) for i in (1, 1))
    assert first == second and compiled(first) is compiled(second)
    assert piece_of(graph, spans[0].starts, (spans[0].end,)) != first


def test_drop_keeps_a_share_of_the_elements():
    quantizer = Affine(jnp.float32(0.5), jnp.float32(0), jnp.float32(8))
    x = jnp.linspace(0.1, 0.9, 1000)
    for probability in (0.0, 0.3, 1.0):
        y = Dropped(quantizer, probability, KEY)(x)
        kept = np.asarray(y == x)
        assert abs(kept[x != quantizer(x)].mean() - probability) < 0.05
        np.testing.assert_array_equal(y[~kept], quantizer(x)[~kept])


LAST = (*(Rule(name=f"w{i}", format="float16") for i in (1, 2, 3)), *W3A8)
"""A plan under which the last layer alone has rounding to learn."""


@functools.cache
def learned(unit):
    graph, params, chosen, theta, data = calibrated(W3A8 if unit == "block" else LAST)
    drop = 0.5 if unit == "block" else 0.0
    return reconstruct_samples(
        graph, params, theta, chosen, data, params, unit=unit, drop=drop, steps=300, key=KEY
    )


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_every_piece_gains_and_freezes_to_its_codes(unit):
    graph, params, chosen, _, _ = calibrated(W3A8 if unit == "block" else LAST)
    result = learned(unit)
    names = ("w1", "w2", "w3", "w4") if unit == "block" else ("w4",)
    assert {w for s in result.spans for w in s.weights} == set(names)
    assert all(s.after < 0.8 * s.before for s in result.spans)
    frozen, encodings = freeze(graph, params, bind(result.theta, chosen))
    for name in names:
        assert isinstance(result.theta[name], SoftRound)
        w = result.theta[name](jnp.asarray(params[name]))
        codes = encodings[name].quantize(np.asarray(frozen[name]))
        np.testing.assert_allclose(encodings[name].dequantize(codes), w, rtol=1e-6, atol=1e-7)


def test_errors_are_those_of_the_network_run_whole():
    graph, params, chosen, _, data = calibrated()
    result = learned("block")
    apply, qparams = lower(graph), bind(result.theta, chosen)
    free = {k: v for k, v in qparams.items() if not k.startswith("b")}  # float biases inside
    last = result.spans[-1]
    error = signal = 0.0
    for batch in data:
        exact = np.asarray(apply(params, {}, batch, want=(last.end,))[last.end], np.float64)
        lossy = apply(params, free, batch, want=(last.end,))[last.end]
        error, signal = error + ((exact - lossy) ** 2).sum(), signal + (exact**2).sum()
    np.testing.assert_allclose(last.after, error / signal, rtol=0.1)


def test_it_starts_from_what_was_learned():
    graph, params, chosen, theta, data = calibrated()
    before = adaround(graph, params, theta, chosen, data, steps=0, key=KEY)
    kept = reconstruct_samples(
        graph, params, before, chosen, data, params, scales=False, steps=1, key=KEY
    )
    # One step moves no logit over zero.
    for name in ("w1", "w2", "w3", "w4"):
        np.testing.assert_array_equal(kept.theta[name].logit, before[name].logit)
        np.testing.assert_array_equal(kept.theta[name].scale, theta[name].scale)
    activations = set(theta) - {"w1", "w2", "w3", "w4"}
    assert all(np.array_equal(kept.theta[n].scale, theta[n].scale) for n in activations)
    moved = {
        n
        for n in activations
        if not np.array_equal(learned("block").theta[n].scale, theta[n].scale)
    }
    assert moved and "x" not in moved


def test_equal_pieces_share_one_program():
    graph, params, chosen, theta, data = calibrated(LAST)
    learned("layer")
    before = compilations("_evaluate")
    reconstruct_samples(
        graph, params, theta, chosen, data, params, unit="layer", steps=2, key=jax.random.key(1)
    )
    assert compilations("_evaluate") == before >= 1
