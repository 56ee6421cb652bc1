"""The one optimization loop: optax in compiled chunks of steps, a Python loop around them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import PRNGKeyArray

from jqnt.errors import DataError
from jqnt.learn.source import Batches, Source, sources
from jqnt.learn.trainable import Trainable, everything, merge, split
from jqnt.types import Leaf

__all__ = ["Fit", "Loss", "Progress", "Project", "advance", "fit", "start", "within"]

Loss = Callable[..., tuple[Any, dict[str, Any]]]
"""`loss(value, batch, *, step, key) -> (scalar, aux)`: a function of the module level (or one
that is made once), since programs are shared by identity; aux is a dict of arrays, whose
scalars are reported."""

Project = Callable[..., Any]
"""`project(value, aux, *, step) -> value` after a step: bounds, moving averages, multipliers."""

Progress = Callable[[int, int, dict[str, float]], Any]
"""`progress(step, total, metrics)` between chunks; metrics are means over the last chunk."""


@struct.dataclass
class Fit:
    """Where an optimization stands: all that the next step needs, as one pytree to save.

    `train` and `held` have theta's structure, with None where the other one has the leaf.
    """

    train: Leaf
    held: Leaf
    state: Leaf
    step: Leaf
    key: Leaf

    @property
    def theta(self) -> Any:
        """What is being fitted, whole."""
        return merge(self.train, self.held)


def start(
    theta: Any,
    optimizer: optax.GradientTransformation,
    *,
    trainable: Trainable = everything,
    key: PRNGKeyArray,
) -> Fit:
    """The state before the first step. Raises ConfigError if `trainable` selects no leaf."""
    # An explicit type, since a Python number would make a weakly typed loop carry.
    theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), theta)
    train, held = split(theta, trainable)
    return Fit(train, held, optimizer.init(train), jnp.int32(0), key)


def fit(
    loss: Loss,
    theta: Any,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    *,
    steps: int,
    trainable: Trainable = everything,
    project: Project | None = None,
    chunk: int = 100,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Fit:
    """Minimizes `loss` over the trainable leaves of `theta`; the result is in `.theta`.

    Steps run in chunks of at most `chunk` in one compiled program, which serves every problem
    of the same loss, optimizer (both by identity) and shapes; the data are its arguments. The
    randomness of a step depends on the key and the step's number only.

    Raises DataError if the loss stops being finite, or if the batches are empty.
    """
    now = start(theta, optimizer, trainable=trainable, key=key)
    done = 0
    for source, count in sources(batches, 0, steps, chunk):
        now, metrics = advance(loss, now, optimizer, source, steps=count, project=project)
        done += count
        if progress is not None:
            progress(done, steps, metrics)
    return now


def within(
    loss: Loss,
    theta: Any,
    optimizer: optax.GradientTransformation,
    source: Source,
    *,
    steps: Any,
    key: PRNGKeyArray,
) -> Any:
    """`fit` of every leaf as a part of a larger program: theta after `steps` (traced) steps.

    Whether the loss stayed finite is the caller's to see.
    """
    now = start(theta, optimizer, key=key)
    return _chunk(now, source, steps, loss=loss, optimizer=optimizer, project=None)[0].theta


def advance(
    loss: Loss,
    now: Fit,
    optimizer: optax.GradientTransformation,
    source: Source,
    *,
    steps: int,
    project: Project | None = None,
) -> tuple[Fit, dict[str, float]]:
    """One chunk of `steps` steps: the new state, and the mean loss and scalars of aux over it.

    For loops of one's own: checkpoints, early stop, evaluation between chunks. Raises
    DataError if the mean loss is not finite.
    """
    after, metrics = _chunk(now, source, steps, loss=loss, optimizer=optimizer, project=project)
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not jnp.isfinite(metrics["loss"]):
        first = int(now.step)
        raise DataError(
            f"the loss is not finite within steps {first} to {first + steps}: look for NaN in "
            f"the data, or take a smaller learning rate"
        )
    return after, metrics


@functools.partial(jax.jit, static_argnames=("loss", "optimizer", "project"))
def _chunk(now: Fit, source: Source, steps: Any, *, loss, optimizer, project):
    """A loop with a traced trip count, so that the last, shorter chunk is no other program."""

    def evaluate(train, held, index, step):
        batch_key, loss_key = jax.random.split(jax.random.fold_in(now.key, step))
        batch = source.take(index, batch_key)
        return loss(merge(train, held), batch, step=step, key=loss_key)

    def body(index, carry):
        train, held, state, step, total = carry
        (value, aux), grads = jax.value_and_grad(evaluate, has_aux=True)(train, held, index, step)
        updates, state = optimizer.update(grads, state, train)
        train = optax.apply_updates(train, updates)
        if project is not None:
            theta = project(merge(train, held), aux, step=step)
            train, held = _like(theta, train), _like(theta, held)
        total = jax.tree.map(jnp.add, total, _scalars(value, aux))
        return train, held, state, step + 1, total

    shapes = jax.eval_shape(evaluate, now.train, now.held, jnp.int32(0), now.step)
    total = jax.tree.map(jnp.zeros_like, _scalars(*shapes))
    carry = (now.train, now.held, now.state, now.step, total)
    train, held, state, step, total = jax.lax.fori_loop(0, steps, body, carry)
    metrics = {name: value / steps for name, value in total.items()}
    return Fit(train, held, state, step, now.key), metrics


def _scalars(value: Any, aux: dict[str, Any]) -> dict[str, Any]:
    """What is reported: the loss and the scalars of aux, float32."""
    found = {name: x for name, x in aux.items() if getattr(x, "shape", None) == ()}
    return jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct((), jnp.float32)
            if isinstance(x, jax.ShapeDtypeStruct)
            else jnp.asarray(x, jnp.float32)
        ),
        {**found, "loss": value},
    )


def _like(theta: Any, part: Any) -> Any:
    """The leaves of theta that `part` has, None elsewhere."""
    return jax.tree.map(
        lambda p, leaf: None if p is None else leaf, part, theta, is_leaf=lambda x: x is None
    )
