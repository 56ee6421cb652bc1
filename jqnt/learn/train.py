"""A training that is watched: evaluation, the best so far, early stop, checkpoints, speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jqnt.errors import ConfigError
from jqnt.learn.checkpoint import Checkpoints
from jqnt.learn.fit import Fit, Loss, Progress, Project, advance
from jqnt.learn.mesh import Spread
from jqnt.learn.source import Batches, Draw, sources

__all__ = ["Trained", "Watch", "train"]


@dataclass(frozen=True)
class Watch:
    """What happens every `every` steps, and at the end.

    `evaluate(theta) -> figure`, more is better: the best theta is kept, and training stops after
    `patience` evaluations without a better one. `directory` gets a checkpoint, from which the
    same call goes on where it stopped, bit by bit.
    """

    every: int = 100
    evaluate: Callable[[Any], float] | None = None
    patience: int | None = None
    directory: str | Path | None = None

    def __post_init__(self):
        if self.every < 1 or (self.patience is not None and self.patience < 1):
            raise ConfigError(f"{self}: every and patience count from 1")
        if self.patience is not None and self.evaluate is None:
            raise ConfigError("patience counts evaluations: give evaluate too")


@dataclass(frozen=True, eq=False)
class Trained:
    """The state at the end, and the best theta with its figure (the last where none is judged)."""

    last: Fit
    best: Any
    figure: float | None
    steps: int


def train(
    loss: Loss,
    now: Fit,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    *,
    steps: int,
    project: Project | None = None,
    watch: Watch | None = None,
    read: Callable[[Fit], Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """`fit` from `now` to step `steps`, watched; `read` is what a state counts for (its theta).

    Progress gets the mean loss and scalars of aux over the last steps, "samples_per_s" (the
    first time includes compilation), and "figure" where there is one. Killed and called again
    with the same arguments it ends where it would have ended. Raises what `advance` raises, and
    DataError if a checkpoint is of another training.
    """
    watch = watch or Watch()
    store = None if watch.directory is None else Checkpoints(watch.directory)
    read = read or _theta
    best, figure, since = read(now), jnp.float32(-jnp.inf), jnp.int32(0)
    if store is not None and (saved := store.latest()) is not None:
        now, best, figure, since = store.restore(saved, (now, best, figure, since))
    done = int(now.step)
    judged = watch.evaluate is not None
    while done < steps and not _exhausted(watch, since):
        stop = min(steps, (done // watch.every + 1) * watch.every)
        started, metrics, total, size = time.perf_counter(), {}, 0, 1
        for source, count in sources(batches, done, stop, watch.every):
            now, found = advance(loss, now, optimizer, source, steps=count, project=project)
            total, size = total + count, _length(source)
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + value * count
        metrics = {name: value / total for name, value in metrics.items()}
        metrics["samples_per_s"] = total * size / (time.perf_counter() - started)
        done = stop
        if watch.evaluate is not None:
            metrics["figure"] = float(watch.evaluate(read(now)))
            better = metrics["figure"] > float(figure)
            since = jnp.int32(0 if better else int(since) + 1)
            if better:
                best, figure = read(now), jnp.float32(metrics["figure"])
        if store is not None:
            store.save(done, (now, best, figure, since))
        if progress is not None:
            progress(done, steps, metrics)
    if store is not None:
        store.close()
    best = best if judged and bool(jnp.isfinite(figure)) else read(now)
    return Trained(now, best, float(figure) if judged else None, done)


def _theta(now: Fit) -> Any:
    return now.theta


def _exhausted(watch: Watch, since: Any) -> bool:
    return watch.patience is not None and int(since) >= watch.patience


def _length(source: Any) -> int:
    """Samples in a batch."""
    while isinstance(source, Spread):
        source = source.source
    if isinstance(source, Draw):
        return source.size
    shape = jax.eval_shape(lambda: source.take(jnp.int32(0), jax.random.key(0)))
    return next((x.shape[0] for x in jax.tree.leaves(shape) if x.ndim), 1)
