"""Quantization-aware training: weights and ranges together, taught by the float network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jqnt.errors import DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.average import averaged, with_average
from jqnt.learn.divergence import Divergence, kl, output_mse, with_targets
from jqnt.learn.fit import Progress, start
from jqnt.learn.kinds import by_kind, of_kind
from jqnt.learn.mesh import Spread, collect, place
from jqnt.learn.method import Method, Task, task
from jqnt.learn.source import Draw
from jqnt.learn.train import Watch, train
from jqnt.plan import Plan, Theta
from jqnt.transforms.batch_norm import statistics
from jqnt.types import Params

__all__ = ["divergence_of", "qat", "relative_adam"]


def qat(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Sequence[Mapping[str, Any]],
    teacher: Params,
    *,
    steps: int = 400,
    batch_size: int = 50,
    method: Method | None = None,
    watch: Watch | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> tuple[Params, Theta]:
    """(params, theta) after training weights, biases and ranges through the grids.

    min over (params, theta) of E[divergence(apply(params, bind(theta, plan), x), target)], where
    target is the float network's output under the params `teacher`. The gradient is
    straight-through on rounding and that of theta's own range parametrizations (see
    `parametrize`; LSQ's for plain grids). `method` says what is minimized and what moves how,
    `watch` what happens on the way: evaluation of {"params", "theta"}, the best of which is
    returned, early stop, checkpoints. Batches are drawn at random from all of `batches`, which
    are in memory, each sample once or not at all in a batch; over a `mesh` they are split.

    Raises DataError for no batches, fewer samples than `batch_size`, or a loss that diverges.
    """
    method = method or Method()
    taught = with_targets(lower(graph), teacher, batches, method.features)
    data = {name: _joined([batch[name] for batch in taught]) for name in taught[0]}
    count = len(next(iter(data.values())))
    if count < batch_size:
        raise DataError(f"{count} samples are fewer than a batch of {batch_size}")
    divergence = method.divergence or divergence_of(
        {name: data[f"target:{name}"] for name in graph.outputs}
    )
    made: Task = task(graph, params, theta, plan, divergence, method, teacher)
    optimizer = method.optimizer or relative_adam(1e-3, 3e-3, steps)
    if method.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, method.accumulate).gradient_transformation()
    if method.average is not None:
        optimizer = with_average(optimizer, method.average)
    now = start(
        made.value,
        optimizer,
        trainable=of_kind(*method.kinds, but=statistics(graph, params)),
        key=key,
    )
    source: Any = Draw(data, batch_size)
    if mesh is not None:
        now, source = place(now, mesh, sharded=method.sharded), Spread(place(source, mesh), mesh)
    found = train(
        made.loss,
        now,
        optimizer,
        source,
        steps=steps,
        project=made.project,
        watch=watch or Watch(every=25),
        read=averaged if method.average is not None else None,
        progress=progress,
    ).best
    if mesh is None:
        return jax.device_get(found["params"]), found["theta"]
    found = collect(found)
    return found["params"], jax.tree.map(jnp.asarray, found["theta"])


def divergence_of(targets: Mapping[str, Any]) -> Divergence:
    """`kl` where there is one output of class scores (two axes, at least two classes), else
    `output_mse`."""
    shapes = [np.shape(value) for value in targets.values()]
    scores = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1
    return kl if scores else output_mse


def relative_adam(
    weights: float, ranges: float, steps: int, *, decay: float = 0.01
) -> optax.GradientTransformation:
    """Adam whose steps are in units of each tensor's own size, under a cosine schedule.

    p <- p - lr(t) * rms(p) * adam(g), with lr from `weights` for params and `ranges` for ranges
    down to `decay` times that: one rate suits layers, and scales, of any magnitude. Rounding and
    bits take the rate of ranges.
    """

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b2=0.99),
            optax.scale_by_param_block_rms(),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, steps, decay)),
        )

    return by_kind(adam(weights), adam(ranges), adam(ranges), adam(ranges))


def _joined(arrays: Sequence[Any]) -> Any:
    return jnp.concatenate([jnp.asarray(array) for array in arrays])
