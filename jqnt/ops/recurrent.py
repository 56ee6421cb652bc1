"""RNN, GRU and LSTM: the input's products at once, then a scan over time.

Names follow the ONNX equations: X (time, batch, input), W and R the weights of input and
recurrence, h and c the states (batch, hidden).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jqnt.errors import ModelError, nearest
from jqnt.ops.registry import lowering

__all__ = []


@lowering("RNN", since=1)
def rnn(node, x, w, r, b=None, lengths=None, initial_h=None):
    """https://onnx.ai/onnx/operators/onnx__RNN.html"""

    def cell(functions, recurrence, bias, peephole, projected, states):
        (f,) = functions
        (h,) = states
        return (f(projected + h @ recurrence.T + bias),)

    return _layer(node, cell, ("Tanh",), (x, w, r, b), lengths, (initial_h,))


@lowering("GRU", since=1)
def gru(node, x, w, r, b=None, lengths=None, initial_h=None):
    """https://onnx.ai/onnx/operators/onnx__GRU.html"""
    linear_before_reset = node.attrs.get("linear_before_reset", 0)

    def cell(functions, recurrence, bias, peephole, projected, states):
        f, g = functions
        (h,) = states
        size = h.shape[-1]
        xzr, xh = projected[:, : 2 * size], projected[:, 2 * size :]
        rzr, rh = recurrence[: 2 * size], recurrence[2 * size :]
        bzr, bh = bias[:, : 2 * size], bias[:, 2 * size :]
        z, reset = jnp.split(f(xzr + h @ rzr.T + bzr), 2, axis=-1)
        if linear_before_reset:
            new = g(xh + reset * (h @ rh.T + bh))
        else:
            new = g(xh + (reset * h) @ rh.T + bh)
        return ((1 - z) * new + z * h,)

    return _layer(node, cell, ("Sigmoid", "Tanh"), (x, w, r, b), lengths, (initial_h,))


@lowering("LSTM", since=1)
def lstm(node, x, w, r, b=None, lengths=None, initial_h=None, initial_c=None, p=None):
    """https://onnx.ai/onnx/operators/onnx__LSTM.html"""
    coupled = node.attrs.get("input_forget", 0)

    def cell(functions, recurrence, bias, peephole, projected, states):
        f, g, last = functions
        h, c = states
        i, o, forget, new = jnp.split(projected + h @ recurrence.T + bias, 4, axis=-1)
        if peephole is None:
            pi = po = pf = 0
        else:
            pi, po, pf = jnp.split(peephole, 3, axis=-1)
        i = f(i + pi * c)
        forget = 1 - i if coupled else f(forget + pf * c)
        c = forget * c + i * g(new)
        o = f(o + po * c)
        return o * last(c), c

    names = ("Sigmoid", "Tanh", "Tanh")
    return _layer(node, cell, names, (x, w, r, b), lengths, (initial_h, initial_c), p)


Cell = Callable[..., tuple[Any, ...]]
"""`cell(functions, recurrence, bias, peephole, projected, states) -> states`, one step."""


def _layer(node, cell: Cell, defaults, tensors, lengths, initial, peephole=None):
    """(Y, last state...) of all directions."""
    x, w, r, b = tensors
    hidden = r.shape[-1]
    kinds = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    direction = node.attrs.get("direction", "forward")
    if len(kinds.get(direction, ())) != w.shape[0]:
        raise ModelError(
            f"{node.op} node {node.name!r}: weights for {w.shape[0]} directions, the node is "
            f"{direction!r}"
        )
    batch_first = node.attrs.get("layout", 0)
    if batch_first:
        x = jnp.swapaxes(x, 0, 1)
        initial = [None if s is None else jnp.swapaxes(s, 0, 1) for s in initial]
    functions = _functions(node, defaults, w.shape[0])
    outputs, finals = [], []
    for d, backward in enumerate(kinds[direction]):
        zero = jnp.zeros((x.shape[1], hidden), x.dtype)
        states = tuple(zero if s is None else s[d] for s in initial)
        bias_w, bias_r = (None, None) if b is None else jnp.split(b[d], 2)
        projected = x @ w[d].T
        if bias_w is not None:
            projected = projected + bias_w.reshape(1, 1, -1)
        bias = jnp.zeros((1, r.shape[1]), x.dtype) if bias_r is None else bias_r.reshape(1, -1)
        part = None if peephole is None else peephole[d].reshape(1, -1)
        step = partial(cell, functions[d], r[d], bias, part)
        ys, last = _over_time(step, projected, states, lengths, backward)
        outputs.append(ys)
        finals.append(last)
    y = jnp.stack(outputs, axis=1)
    states = [jnp.stack(parts) for parts in zip(*finals, strict=True)]
    if batch_first:
        y = jnp.transpose(y, (2, 0, 1, 3))
        states = [jnp.swapaxes(s, 0, 1) for s in states]
    return (y, *states)


def _over_time(step, projected, states, lengths, backward):
    """All hidden states and the last states; past a sequence's end states stay and Y is 0."""
    steps = projected.shape[0]
    if backward:
        projected = _reversed(projected, lengths)

    def body(states, entry):
        time, inputs = entry
        new = step(inputs, states)
        if lengths is None:
            return new, new[0]
        going = (time < lengths)[:, None]
        kept = tuple(jnp.where(going, a, b) for a, b in zip(new, states, strict=True))
        return kept, jnp.where(going, new[0], 0)

    # one step needs no loop, and a loop costs more than the step
    states, ys = lax.scan(body, states, (jnp.arange(steps), projected), unroll=steps < 2 or 1)
    return (_reversed(ys, lengths) if backward else ys), states


def _reversed(x, lengths):
    """Each sequence backwards within its length; x is (time, batch, ...)."""
    if lengths is None:
        return jnp.flip(x, 0)
    times = jnp.arange(x.shape[0])[:, None]
    ends = lengths.reshape(1, -1)
    places = jnp.where(times < ends, ends - 1 - times, times)
    return jnp.take_along_axis(x, places[:, :, None], axis=0)


def _functions(node, defaults, directions):
    """The activation functions of each direction; alphas and betas are consumed in order."""
    names = node.attrs.get("activations", defaults * directions)
    if len(names) != len(defaults) * directions:
        raise ModelError(
            f"{node.op} node {node.name!r}: {len(names)} activations, expected "
            f"{len(defaults) * directions}"
        )
    alphas = iter(node.attrs.get("activation_alpha", ()))
    betas = iter(node.attrs.get("activation_beta", ()))
    known = {name.lower(): name for name in _ACTIVATIONS}
    clip = node.attrs.get("clip")
    found = []
    for name in names:
        if name.lower() not in known:
            raise ModelError(
                f"{node.op} node {node.name!r}: unknown activation {name!r}"
                f"{nearest(name, _ACTIVATIONS)}"
            )
        function, *settings = _ACTIVATIONS[known[name.lower()]]
        values = [next(s, d) for s, d in zip((alphas, betas), settings, strict=False)]
        found.append(_clipped(partial(function, *values), clip))
    return [found[i : i + len(defaults)] for i in range(0, len(found), len(defaults))]


def _clipped(function, bound):
    if bound is None:
        return function
    return lambda x: function(jnp.clip(x, -bound, bound))


_ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "Relu": (jax.nn.relu,),
    "Tanh": (jnp.tanh,),
    "Sigmoid": (jax.nn.sigmoid,),
    "Affine": (lambda a, b, x: a * x + b, 1.0, 0.0),
    "LeakyRelu": (lambda a, x: jnp.where(x >= 0, x, a * x), 0.01),
    "ThresholdedRelu": (lambda a, x: jnp.where(x >= a, x, 0), 1.0),
    "ScaledTanh": (lambda a, b, x: a * jnp.tanh(b * x), 1.0, 1.0),
    "HardSigmoid": (lambda a, b, x: jnp.clip(a * x + b, 0, 1), 0.2, 0.5),
    "Elu": (lambda a, x: jnp.where(x >= 0, x, a * jnp.expm1(jnp.minimum(x, 0))), 1.0),
    "Softsign": (lambda x: x / (1 + jnp.abs(x)),),
    "Softplus": (jax.nn.softplus,),
}
"""Name -> function of (alpha, beta, x) as far as it takes them, and their defaults."""
