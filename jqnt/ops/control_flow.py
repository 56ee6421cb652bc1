"""If, Loop and Scan: decided or unrolled where the condition is known, else cond, while, scan.

A body is a function `body(*arrays) -> tuple of arrays` (see the registry).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, namespace
from jqnt.ops.registry import lowering

__all__ = []

_UNROLLED = 16
"""The longest loop of static trip count that is written out; a longer one is a scan."""

_LONGEST = 10_000_000
"""No loop of known count of a real model is longer."""

_LONGEST_WRITTEN = 10_000
"""No written-out loop of a real model is longer."""


@lowering("If", settings=(0,))
def if_(node, condition):
    """https://onnx.ai/onnx/operators/onnx__If.html"""
    then, other = node.attrs["then_branch"], node.attrs["else_branch"]
    if not isinstance(condition, Tracer):
        return then() if np.asarray(condition).reshape(-1)[0] else other()
    branches = [lambda f=f: tuple(jnp.asarray(v) for v in f()) for f in (then, other)]
    shapes = [[(v.shape, v.dtype.name) for v in jax.eval_shape(f)] for f in branches]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"If node {node.name!r}: the condition is computed from data and the branches give "
            f"{shapes[0]} and {shapes[1]}, which must agree"
        )
    return lax.cond(jnp.reshape(condition, ()), *branches)


@lowering("Loop", settings=(0, 1))
def loop(node, count, condition, *carried):
    """https://onnx.ai/onnx/operators/onnx__Loop.html"""
    body = node.attrs["body"]
    limit = _known(count)
    if limit is not None or not isinstance(count, Tracer):
        done = _written_out(node, body, limit, condition, carried)
        if done is not None:
            return done
    outputs = len(node.outputs)
    if outputs > len(carried):
        raise ModelError(
            f"Loop node {node.name!r}: data decide how often it runs, and so the shape of its "
            f"output {node.outputs[len(carried)]!r}; run the model outside of jit"
        )
    return _while(body, count, condition, carried)


def _known(value: Any) -> int | None:
    """The number behind a concrete scalar; None where it is traced or absent."""
    if value is None or isinstance(value, Tracer):
        return None
    return int(np.asarray(value).reshape(-1)[0])


def _written_out(node, body, limit, condition, carried):
    """Iterations in Python while the condition is known; None where it is not.

    Where the first iteration shows that the condition stays, and the states keep shape and
    type, the rest of a long loop of known count is a scan.
    """
    state, rows, step = tuple(carried), [], 0
    going = True if condition is None else condition
    while limit is None or step < limit:
        if isinstance(going, Tracer):
            return None
        if not np.asarray(going).reshape(-1)[0]:
            break
        if step == 1 and (limit is None or limit - step > _UNROLLED):
            advance = _uniform(body, state, condition is None and limit is not None)
            if advance is not None:
                if limit is None or limit > _LONGEST:
                    times = "without an end" if limit is None else f"{limit} times"
                    raise ModelError(f"Loop node {node.name!r} runs {times}")
                start = tuple(jnp.asarray(s) for s in state)
                state, stacked = lax.scan(advance, start, jnp.arange(step, limit))
                rows = [_joined([r[None]], s) for r, s in zip(rows[0], stacked, strict=True)]
                return (*state, *rows)
        results = body(np.asarray(step, np.int64), np.asarray(going), *state)
        if condition is not None or limit is None:
            going = results[0]
        state, row = results[1 : 1 + len(carried)], results[1 + len(carried) :]
        rows.append(row)
        step += 1
        if step > _LONGEST_WRITTEN:
            raise ModelError(f"Loop node {node.name!r} runs more than {_LONGEST_WRITTEN} times")
    if not rows:
        return (*state, *_no_rows(node, body, state))
    stacked = [_joined([part[None] for part in parts]) for parts in zip(*rows, strict=True)]
    return (*state, *stacked)


def _joined(parts, more=None):
    parts = parts if more is None else [*parts, more]
    return namespace(*parts).concatenate(parts, axis=0)


def _no_rows(node, body, state):
    """Scan outputs of a loop that never runs: no rows, of the shape that a row would have."""
    count = len(node.outputs) - len(state)
    if count <= 0:
        return []
    rows = jax.eval_shape(lambda: body(np.asarray(0, np.int64), np.asarray(True), *state))
    return [np.zeros((0, *r.shape), r.dtype) for r in rows[1 + len(state) :]]


def _uniform(body, state, endless):
    """The body as the step of a scan, if all iterations are alike; else None.

    They are if the states keep shape and type and the condition stays true whatever the index
    is, or does not count (`endless`).
    """
    start = tuple(jnp.asarray(s) for s in state)
    stays = []

    def step(carry, index):
        results = body(index, np.asarray(True), *carry)
        stays.append(not isinstance(results[0], Tracer) and bool(np.all(results[0])))
        after = tuple(jnp.asarray(r) for r in results[1:])
        return after[: len(carry)], after[len(carry) :]

    try:
        carry, _ = jax.eval_shape(step, start, jnp.asarray(0))
    except ModelError:
        # a body that needs its index as a number can only be written out
        return None
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(carry, start, strict=True))
    return step if same and (endless or stays[0]) else None


def _while(body, count, condition, carried):
    """A loop whose end depends on data, without scan outputs."""
    going = jnp.asarray(True if condition is None else condition).reshape(())
    index = jnp.asarray(np.asarray(0, np.int64))

    def runs(now):
        step, going, _ = now
        return going if count is None else going & (step < jnp.reshape(count, ()))

    def advance(now):
        step, going, state = now
        results = body(step, going, *state)
        after = jnp.asarray(results[0]).reshape(()) if condition is not None else going
        kept = tuple(
            jnp.asarray(r).astype(s.dtype) for r, s in zip(results[1:], state, strict=True)
        )
        return step + 1, after, kept

    start = (index, going, tuple(jnp.asarray(c) for c in carried))
    return lax.while_loop(runs, advance, start)[2]


@lowering("Scan", since=9)
def scan(node, *inputs):
    """https://onnx.ai/onnx/operators/onnx__Scan.html"""
    sequences = node.attrs["num_scan_inputs"]
    states = len(inputs) - sequences
    outputs = len(node.outputs) - states
    return _scan(node, inputs[:states], inputs[states:], outputs)


@lowering("Scan", since=8)
def scan_8(node, lengths, *inputs):
    """https://onnx.ai/onnx/operators/onnx__Scan.html (batched; sequences may be shorter)"""
    sequences = node.attrs["num_scan_inputs"]
    states = len(inputs) - sequences
    outputs = len(node.outputs) - states
    steps = inputs[states].shape[1]
    if lengths is not None and not isinstance(lengths, Tracer) and np.all(lengths == steps):
        lengths = None
    batch = inputs[0].shape[0]
    results = []
    for b in range(batch):
        length = None if lengths is None else lengths[b]
        rows = [t[b] for t in inputs]
        results.append(_scan(node, rows[:states], rows[states:], outputs, length))
    return tuple(jnp.stack(parts) for parts in zip(*results, strict=True))


def _scan(node, state, sequences, outputs, length=None):
    """The last states and stacked outputs; after `length` steps states stay and outputs are 0."""
    body = node.attrs["body"]

    def setting(name, count, default):
        return node.attrs.get(name, (default,) * count)

    axes = setting("scan_input_axes", len(sequences), 0)
    backward = setting("scan_input_directions", len(sequences), 0)
    backward = node.attrs.get("directions", backward)
    rows = []
    for x, axis, back in zip(sequences, axes, backward, strict=True):
        x = jnp.moveaxis(jnp.asarray(x), axis_of(node, axis, x.ndim), 0)
        rows.append(jnp.flip(x, 0) if back else x)

    def step(carry, now):
        index, parts = now
        results = tuple(jnp.asarray(r) for r in body(*carry, *parts))
        after, made = results[: len(carry)], results[len(carry) :]
        after = tuple(a.astype(c.dtype) for a, c in zip(after, carry, strict=True))
        if length is not None:
            after = tuple(
                jnp.where(index < length, a, c) for a, c in zip(after, carry, strict=True)
            )
            made = tuple(jnp.where(index < length, m, jnp.zeros_like(m)) for m in made)
        return after, made

    start = tuple(jnp.asarray(s) for s in state)
    steps = jnp.arange(rows[0].shape[0])
    last, stacked = lax.scan(step, start, (steps, tuple(rows)))
    places = setting("scan_output_axes", outputs, 0)
    turned = setting("scan_output_directions", outputs, 0)
    made = []
    for y, axis, back in zip(stacked, places, turned, strict=True):
        y = jnp.flip(y, 0) if back else y
        made.append(jnp.moveaxis(y, 0, axis_of(node, axis, y.ndim)))
    return (*last, *made)
