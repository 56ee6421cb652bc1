"""How much the output minds an error in a tensor's elements: the diagonal Fisher information."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jqnt.errors import DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.curvature import Shift
from jqnt.learn.divergence import kl
from jqnt.learn.qat import divergence_of
from jqnt.types import Params

__all__ = ["importance"]


def importance(
    graph: Graph,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    tensors: Sequence[str],
    *,
    key: PRNGKeyArray,
) -> dict[str, np.ndarray]:
    """Tensor -> E[(d log p(y | x) / dz)^2] per element of one sample, over its mean: [1, ...].

    The expectation is over the samples and over y drawn from the float network's own answer: a
    class of softmax(outputs), or outputs + N(0, 1) where they are no class scores. Then it is the
    diagonal of J^T H J, H the Hessian of the divergence at the outputs: what the loss of a block
    is weighted with (BRECQ, Li et al. 2021, eq. 10, where each sample has squared gradients of
    its own). One backward pass serves all tensors, so that it costs as many as there are batches.

    Raises DataError for no batches, and for samples of different shapes.
    """
    apply = lower(graph)

    @jax.jit
    def squares(params: Params, inputs: Any, key: PRNGKeyArray) -> dict[str, Array]:
        shapes = jax.eval_shape(lambda: apply(params, {}, inputs, want=tensors))
        zero = {name: jnp.zeros(shapes[name].shape) for name in tensors}

        def log_likelihood(shift: Any) -> Any:
            probes = {name: Shift(value) for name, value in shift.items()}
            return _log_likelihood(apply(params, probes, inputs), key)

        gradients = jax.grad(log_likelihood)(zero)
        return {name: jnp.sum(g**2, 0, keepdims=True) for name, g in gradients.items()}

    total: dict[str, Any] = {}
    for i, batch in enumerate(batches):
        inputs = {name: batch[name] for name in graph.inputs}
        found = jax.device_get(squares(params, inputs, jax.random.fold_in(key, i)))
        for name, value in found.items():
            if name in total and total[name].shape != value.shape:
                raise DataError(f"samples differ in the shape of {name!r}, so they have no mean")
            total[name] = total.get(name, 0) + value.astype(np.float64)
    if not total:
        raise DataError("no batches to weigh errors on; at least one is needed")
    return {
        name: (value / max(value.mean(), np.finfo(np.float32).tiny)).astype(np.float32)
        for name, value in total.items()
    }


def _log_likelihood(outputs: Mapping[str, Any], key: PRNGKeyArray) -> Any:
    """log p(y) of a y that is drawn from p, summed over samples."""
    fixed = jax.lax.stop_gradient(dict(outputs))
    if divergence_of(outputs) is kl:
        (name,) = outputs
        drawn = jax.random.categorical(key, fixed[name])
        logs = jax.nn.log_softmax(outputs[name], axis=-1)
        return jnp.sum(jnp.take_along_axis(logs, drawn[:, None], axis=-1))
    keys = jax.random.split(key, len(outputs))
    floats = [n for n in outputs if jnp.issubdtype(outputs[n].dtype, jnp.floating)]
    return sum(
        -jnp.sum((fixed[n] + jax.random.normal(k, fixed[n].shape) - outputs[n]) ** 2) / 2
        for n, k in zip(floats, keys, strict=False)
    )
