"""Quantization-aware training: weights and ranges together, taught by the float network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jqnt.errors import DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.divergence import Divergence, kl, output_mse, with_targets
from jqnt.learn.fit import Progress, fit
from jqnt.learn.source import Draw
from jqnt.plan import Plan, Theta, bind
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
    divergence: Divergence | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 400,
    batch_size: int = 50,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> tuple[Params, Theta]:
    """(params, theta) after training weights, biases and scales through the grids.

    min over (params, theta) of E[divergence(apply(params, bind(theta, plan), x), target)], where
    target is the float network's output under the params `teacher`. The gradient is
    straight-through on rounding and LSQ's in the scales (Esser et al. 2020). `divergence`
    defaults to `divergence_of` the outputs; `optimizer` sees {"params", "theta"} and defaults to
    `relative_adam` on both. Batches are drawn at random from all of `batches`, which are in
    memory, each sample once or not at all in a batch.

    Raises DataError for no batches, fewer samples than `batch_size`, or a loss that diverges.
    """
    apply = lower(graph)
    taught = with_targets(apply, teacher, batches)
    data = {name: _joined([batch[name] for batch in taught]) for name in taught[0]}
    count = len(next(iter(data.values())))
    if count < batch_size:
        raise DataError(f"{count} samples are fewer than a batch of {batch_size}")
    if divergence is None:
        divergence = divergence_of({name: data[f"target:{name}"] for name in graph.outputs})
    trained = {name: jnp.asarray(value) for name, value in params.items()}
    fitted = fit(
        _loss(apply, plan, divergence, graph.inputs),
        {"params": trained, "theta": theta},
        relative_adam(1e-3, 3e-3, steps) if optimizer is None else optimizer,
        Draw(data, batch_size),
        steps=steps,
        trainable=_moves,
        project=_positive,
        chunk=25,
        progress=progress,
        key=key,
    ).theta
    return jax.device_get(fitted["params"]), fitted["theta"]


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

    p <- p - lr(t) * rms(p) * adam(g), with lr from `weights` for params and `ranges` for theta
    down to `decay` times that: one rate suits layers, and scales, of any magnitude.
    """

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b2=0.99),
            optax.scale_by_param_block_rms(),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, steps, decay)),
        )

    def labels(value: Mapping[str, Any]) -> dict[str, Any]:
        return {kind: jax.tree.map(lambda _, k=kind: k, part) for kind, part in value.items()}

    return optax.multi_transform({"params": adam(weights), "theta": adam(ranges)}, labels)


def _moves(path: Any, leaf: Any) -> bool:
    """Weights, and the scales of quantizers; bits, zero points and logits are given."""
    names = {getattr(k, "name", None) for k in path} | {getattr(k, "key", None) for k in path}
    return "params" in names or "scale" in names


def _loss(
    apply: Callable[..., Any], plan: Plan, divergence: Divergence, inputs: Sequence[str]
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def loss(value: Any, batch: Any, *, step: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        qparams = bind(value["theta"], plan)
        outputs = apply(value["params"], qparams, {name: batch[name] for name in inputs})
        return divergence(outputs, batch), {}

    return loss


def _positive(value: Any, aux: Any, *, step: Any) -> Any:
    """A step may not turn a scale over."""
    tiny = jnp.finfo(jnp.float32).tiny

    def kept(path: Any, leaf: Any) -> Any:
        is_scale = any(getattr(k, "name", None) == "scale" for k in path)
        return jnp.maximum(leaf, tiny) if is_scale else leaf

    theta = jax.tree_util.tree_map_with_path(kept, value["theta"])
    return {**value, "theta": theta}


def _joined(arrays: Sequence[Any]) -> Any:
    return jnp.concatenate([jnp.asarray(array) for array in arrays])
