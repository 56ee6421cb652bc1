"""All rounding of a network fine-tuned at once, on the network's own outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jqnt.affine import rectified_sigmoid
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.divergence import with_targets
from jqnt.learn.fit import Progress
from jqnt.learn.method import Method
from jqnt.learn.qat import divergence_of, qat
from jqnt.learn.reconstruct import learnable, value_of
from jqnt.learn.rounding import closed, kept, opened
from jqnt.learn.rows import regularizer
from jqnt.plan import Plan, Theta, bind
from jqnt.quantizers import SoftRound
from jqnt.types import Params

__all__ = ["netwise"]

RATE = 1e-2
BATCH = 32
STRENGTH = 3.6
"""Of the regularizer of a network wholly open, over the divergence at the start: as in layers."""


def netwise(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Sequence[Mapping[str, Any]],
    teacher: Params,
    *,
    steps: int = 500,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Theta:
    """theta with the logits of all weights trained together.

    min over logits of E[divergence(outputs, those of the float params `teacher`)] + AdaRound's
    regularizer, which closes every logit in the end; the divergence is `divergence_of` the
    outputs. Training starts from the rounding that `theta` has; what ends no nearer to the float
    network on all of `batches` is not taken.

    Raises what `learnable` and `qat` do.
    """
    weights = learnable(graph, theta, plan)
    values = {name: jnp.asarray(value_of(graph, params, name)) for name in weights}
    before = {**theta, **{name: kept(theta[name], values[name]) for name in weights}}
    taught = with_targets(lower(graph), teacher, batches)
    divergence = divergence_of({name: taught[0][f"target:{name}"] for name in graph.outputs})
    apply = lower(graph)

    @jax.jit
    def far(theta: Theta, batch: Any) -> Any:
        inputs = {name: batch[name] for name in graph.inputs}
        return divergence(apply(params, bind(theta, plan), inputs), batch)

    def distance(theta: Theta) -> float:
        sizes = [len(batch[graph.inputs[0]]) for batch in taught]
        parts = [float(far(theta, batch)) * n for batch, n in zip(taught, sizes, strict=True)]
        return sum(parts) / sum(sizes)

    start = distance(before)

    def binary(params: Any, qparams: Any, step: Any) -> Any:
        logits = [qparams[n].logit for n in weights if isinstance(qparams[n], SoftRound)]
        openness = sum(regularizer(rectified_sigmoid(v), step / steps) for v in logits)
        return STRENGTH * start * openness / sum(v.size for v in logits)

    soft = {**before, **{name: opened(before[name], values[name]) for name in weights}}
    count = sum(len(batch[graph.inputs[0]]) for batch in taught)
    _, found = qat(
        graph, params, soft, plan, batches, teacher, steps=steps, batch_size=min(BATCH, count),
        method=Method(divergence, penalties=(binary,), optimizer=optax.adam(RATE),
                      kinds=("rounding",)),
        progress=progress, key=key,
    )  # fmt: skip
    hard = {**before, **{name: closed(found[name]) for name in weights}}
    return hard if distance(hard) < start else before
