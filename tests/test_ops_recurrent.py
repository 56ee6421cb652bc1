"""RNN, GRU and LSTM with every option, against onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_node import floats, model, run_jqnt, run_ort

from jqnt.errors import ModelError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6


def layer(op, directions=1, lengths=None, initial=False, peephole=False, bias=True):
    rng = np.random.default_rng(0)
    gates = GATES[op] * HIDDEN

    def normal(*shape):
        return rng.normal(0, 0.5, shape).astype(np.float32)

    given = {
        "X": normal(STEPS, BATCH, SIZE),
        "W": normal(directions, gates, SIZE),
        "R": normal(directions, gates, HIDDEN),
        "B": normal(directions, 2 * gates) if bias else None,
        "lengths": None if lengths is None else np.asarray(lengths, np.int32),
        "h": normal(directions, BATCH, HIDDEN) if initial else None,
    }
    if op == "LSTM":
        given["c"] = normal(directions, BATCH, HIDDEN) if initial else None
        given["P"] = normal(directions, 3 * HIDDEN) if peephole else None
    return given


CASES = [
    ("RNN", {}, {}),
    ("RNN", {"directions": 2, "initial": True}, {"direction": "bidirectional"}),
    ("RNN", {"lengths": [5, 2, 4]}, {"direction": "reverse", "clip": 0.4}),
    ("RNN", {"bias": False}, {
        "activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]
    }),
    ("RNN", {}, {"activations": ["HardSigmoid"]}),
    ("RNN", {}, {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
    ("RNN", {}, {
        "activations": ["ScaledTanh"], "activation_alpha": [0.7], "activation_beta": [1.2]
    }),
    ("RNN", {}, {"activations": ["ThresholdedRelu"], "activation_alpha": [0.1]}),
    ("GRU", {}, {}),
    ("GRU", {"initial": True, "lengths": [3, 5, 1]}, {"linear_before_reset": 1}),
    ("GRU", {"directions": 2, "initial": True, "lengths": [3, 5, 1]}, {
        "direction": "bidirectional"
    }),
    ("GRU", {}, {"activations": ["Softsign", "Softplus"], "clip": 3.0}),
    ("GRU", {"directions": 2}, {
        "direction": "bidirectional",
        "activations": ["HardSigmoid", "Elu", "Sigmoid", "Relu"],
        "activation_alpha": [0.3, 0.8], "activation_beta": [0.4],
    }),
    ("LSTM", {}, {}),
    ("LSTM", {"bias": False, "initial": True}, {"direction": "reverse"}),
    ("LSTM", {"peephole": True, "initial": True, "lengths": [2, 5, 3]}, {}),
    ("LSTM", {"peephole": True}, {"input_forget": 1}),
    ("LSTM", {"directions": 2, "initial": True, "lengths": [2, 5, 3]}, {
        "direction": "bidirectional", "clip": 0.9
    }),
]  # fmt: skip


@pytest.mark.parametrize("op, inputs, attrs", CASES)
def test_recurrent_layers_agree_with_onnxruntime(op, inputs, attrs):
    given = layer(op, **inputs)
    outputs = floats("Y", "Y_h", "Y_c")[: 3 if op == "LSTM" else 2]
    fixed = [k for k in ("W", "R", "B", "P") if given.get(k) is not None]
    proto = model(op, given, outputs, 14, fixed, hidden_size=HIDDEN, **attrs)
    for ours, theirs in zip(run_jqnt(proto, given), run_ort(proto, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", GATES)
def test_the_gradient_through_time_is_that_of_differences(op):
    given = {k: v for k, v in layer(op).items() if v is not None}
    proto = model(op, given, floats("Y"), 14, ["W", "R", "B"], hidden_size=HIDDEN)
    graph, params, _ = import_onnx(proto)
    apply = lower(graph)
    with jax.enable_x64(True):
        exact = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
        x = jnp.asarray(given["X"], jnp.float64)

        @jax.jit
        def loss(params):
            return jnp.sum(jnp.square(apply(params, {}, {"X": x})["Y"]))

        slopes = jax.jit(jax.grad(loss))(exact)
        step = 1e-6
        for name in exact:
            at = (0, 1, 2) if exact[name].ndim == 3 else (0, 3)
            up, down = (
                loss({**exact, name: exact[name].at[at].add(sign * step)}) for sign in (1, -1)
            )
            np.testing.assert_allclose(slopes[name][at], (up - down) / (2 * step), rtol=1e-5)


def test_what_does_not_fit_is_refused():
    given = layer("RNN", directions=2)
    with pytest.raises(ModelError, match="2 directions"):
        run_jqnt(model("RNN", given, floats("Y"), 14, hidden_size=HIDDEN), given)
    given = layer("RNN")
    odd = model("RNN", given, floats("Y"), 14, activations=["Tan"], hidden_size=HIDDEN)
    with pytest.raises(ModelError, match="Tanh"):
        run_jqnt(odd, given)
