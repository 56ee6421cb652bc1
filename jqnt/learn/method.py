"""What a quantization-aware training minimizes and moves: `Method`, and the loss made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.divergence import Divergence, output_mse
from jqnt.learn.fast import fast
from jqnt.learn.fit import Loss, Project
from jqnt.learn.kinds import positive
from jqnt.learn.oscillation import freeze_weight, still, track
from jqnt.learn.wraps import Wrap
from jqnt.plan import Plan, Theta, bind
from jqnt.quantizers import Half, affine_of
from jqnt.transforms.batch_norm import batch_statistics, statistics
from jqnt.types import Params

__all__ = ["Augment", "Method", "Penalty", "Task", "task"]

Augment = Callable[..., Mapping[str, Any]]
"""`augment(inputs, *, key) -> inputs` of the same shapes, inside the trace: other samples that
the teacher has an answer to."""

Penalty = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]
"""`penalty(params, qparams, step) -> scalar`, added to the loss."""


@dataclass(frozen=True)
class Method:
    """How a network is trained through its grids.

    The loss is `divergence` (by default to the float outputs) + `feature_weight` times the
    relative error of the tensors `features` + the penalties. `optimizer` sees {"params", "theta"}
    (see `by_kind`); `kinds` are what moves. `wraps` go around the quantizers at each step.

    `norm` "kept" uses statistics of batch normalization as they are, "batch" those of the batch,
    with moving averages. `freeze_above(step)` is the frequency from which an oscillating weight
    is frozen. `average` keeps a moving average of what moves, which is the result. `accumulate`
    gradients make a step. `augment` makes other inputs of each batch, whose targets the teacher
    gives in the step itself: one more float forward pass, and no end of samples (Beyer et al.
    2022, "function matching"). `half` computes in bfloat16 between quantizers, `fast` multiplies
    integers forward (see `fast`). `sharded` splits what trains over the devices of a mesh, and
    not only the batches.
    """

    divergence: Divergence | None = None
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    penalties: tuple[Penalty, ...] = ()
    optimizer: optax.GradientTransformation | None = None
    kinds: tuple[str, ...] = ("weights", "ranges")
    wraps: tuple[Wrap, ...] = ()
    norm: str = "kept"
    freeze_above: Callable[[Any], Any] | None = None
    average: float | None = None
    accumulate: int = 1
    augment: Augment | None = None
    half: bool = False
    fast: bool = False
    sharded: bool = False

    def __post_init__(self):
        if self.norm not in ("kept", "batch"):
            raise ConfigError(f"norm is 'kept' or 'batch', not {self.norm!r}")
        if self.accumulate < 1:
            raise ConfigError(f"at least one gradient makes a step, not {self.accumulate}")
        if self.fast and (self.half or self.wraps):
            raise ConfigError("the fast mode multiplies int8 codes: no half and no wraps with it")


class Task(NamedTuple):
    """The value that is fitted, its loss, and what follows each step."""

    value: dict[str, Any]
    loss: Loss
    project: Project


def task(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    divergence: Divergence,
    method: Method,
    teacher: Params | None = None,
) -> Task:
    """The fit of {"params", "theta"}; batches hold inputs and "target:" + name of each output and
    feature, which an augmenting method computes anew from the params `teacher`.

    Raises ConfigError for unknown features, for "batch" without normalization, and for an
    augmenting method without a teacher.
    """
    if method.augment is not None and teacher is None:
        raise ConfigError("augmented inputs have no stored targets: give the teacher's params")
    for name in method.features:
        graph.check(name)
    updates: Mapping[str, str] = {}
    used = graph
    if method.norm == "batch":
        used, updates = (lambda m: (m.graph, m.updates))(batch_statistics(graph, params))
    apply = fast(used, plan) if method.fast else lower(used)
    taught = lower(graph)
    kept = {*statistics(graph, params)}
    want = (*graph.outputs, *method.features, *updates.values())

    def augmented(augment: Augment, value: Any, batch: Any, key: Any) -> dict[str, Any]:
        inputs = augment({name: batch[name] for name in graph.inputs}, key=key)
        names = (*graph.outputs, *method.features)
        targets = taught(value["teacher"], {}, inputs, want=names)
        return {**inputs, **{f"target:{name}": y for name, y in targets.items()}}

    def loss(value: Any, batch: Any, *, step: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        if method.augment is not None:
            own = jax.random.fold_in(key, len(method.wraps))
            batch = augmented(method.augment, value, batch, own)
        params, bound = value["params"], bind(value["theta"], plan)
        qparams = bound
        for i, wrap in enumerate(method.wraps):
            qparams = wrap(qparams, params, step=step, key=jax.random.fold_in(key, i))
        inputs = {name: batch[name] for name in graph.inputs}
        used = params
        if method.half:
            qparams = {name: Half(q) for name, q in qparams.items()}
            used = {n: p if n in qparams or n in kept else _narrow(p) for n, p in params.items()}
            inputs = {n: x if n in qparams else _narrow(x) for n, x in inputs.items()}
        found = apply(used, qparams, inputs, want=want)
        if method.half:
            found = {name: x.astype(jnp.float32) for name, x in found.items()}
        total = divergence({name: found[name] for name in graph.outputs}, batch)
        aux: dict[str, Any] = {"divergence": total}
        if method.features:
            aux["features"] = output_mse({name: found[name] for name in method.features}, batch)
            total = total + method.feature_weight * aux["features"]
        for penalty in method.penalties:
            total = total + penalty(params, bound, step)
        aux["moving"] = {name: found[tensor] for name, tensor in updates.items()}
        return total, aux

    def project(value: Any, aux: Any, *, step: Any) -> Any:
        value = positive(value)
        params = {**value["params"], **aux["moving"]}
        if method.freeze_above is not None:
            qparams, states = bind(value["theta"], plan), {}
            threshold = method.freeze_above(step)
            for name, state in value["oscillation"].items():
                grid = affine_of(qparams[name])
                assert grid is not None
                states[name] = track(state, grid.codes(params[name]), threshold)
                params[name] = freeze_weight(params[name], grid, states[name])
            value = {**value, "oscillation": states}
        return {**value, "params": params}

    value: dict[str, Any] = {
        "params": {name: jnp.asarray(array) for name, array in params.items()},
        "theta": theta,
    }
    if method.augment is not None:
        value["teacher"] = {name: jnp.asarray(array) for name, array in (teacher or {}).items()}
    if method.freeze_above is not None:
        value["oscillation"] = {
            name: still(grid.codes(jnp.asarray(params[name])))
            for name, q in bind(theta, plan).items()
            if name in params and jnp.ndim(params[name]) > 1 and (grid := affine_of(q)) is not None
        }
    return Task(value, loss, project)


def _narrow(x: Any) -> Any:
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
