"""Second-order sensitivities: Hessian traces by Hutchinson's estimator, squared gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.errors import ConfigError, DataError
from jqnt.types import Apply, Leaf, Params, Quantizer

__all__ = ["Trace", "hessian_traces", "perturbation_table", "squared_gradients"]


class Trace(NamedTuple):
    """An estimated trace, its standard error, and how many elements the tensor has."""

    value: float
    error: float
    elements: int


def hessian_traces(
    loss: Callable[[Params, Mapping[str, Any]], Any],
    params: Params,
    names: Sequence[str],
    batch: Mapping[str, Any],
    *,
    tolerance: float = 0.05,
    most: int = 300,
    key: PRNGKeyArray,
) -> dict[str, Trace]:
    """Tr(d^2 loss / dw^2) for each of the params `names`: the mean of z^T H z, z in {-1, +1}.

    Hutchinson 1990; HAWQ-V2 (Dong et al. 2020, eq. 8). One Hessian-vector product serves all
    tensors at once, since the cross terms have mean zero. Probes are drawn eight at a time until
    the standard error of the sum of all traces, relative to it, is below `tolerance`, or `most`
    are used. Raises ConfigError for an unknown name and a tolerance that is not positive.
    """
    unknown = [name for name in names if name not in params]
    if unknown or not tolerance > 0 or most < 2:
        raise ConfigError(
            f"unknown params {unknown[:1]}, tolerance {tolerance} or most {most}; expected known "
            f"names, a positive tolerance and at least 2 probes"
        )
    own = {name: jnp.asarray(params[name]) for name in names}

    @jax.jit
    def probe(own: Params, params: Params, batch: Mapping[str, Any], keys: Array) -> Array:
        gradient = jax.grad(lambda w: loss({**params, **w}, batch))

        def once(key: Array) -> Array:
            each = jax.random.split(key, len(names))
            z = {n: jax.random.rademacher(k, own[n].shape, jnp.float32)
                 for n, k in zip(names, each, strict=True)}  # fmt: skip
            product = jax.jvp(gradient, (own,), (z,))[1]
            return jnp.stack([jnp.vdot(z[n], product[n]) for n in names])

        return jax.lax.map(once, keys)

    values = np.zeros((0, len(names)))
    while len(values) < most:
        key, used = jax.random.split(key)
        drawn = probe(own, params, batch, jax.random.split(used, 8))
        values = np.concatenate([values, np.asarray(drawn, np.float64)])
        total = values.sum(1)
        if total.std(ddof=1) / np.sqrt(len(total)) <= tolerance * abs(total.mean()):
            break
    errors = values.std(0, ddof=1) / np.sqrt(len(values))
    return {
        name: Trace(float(mean), float(error), int(np.size(params[name])))
        for name, mean, error in zip(names, values.mean(0), errors, strict=True)
    }


def perturbation_table(
    traces: Mapping[str, Trace], params: Params, branches: Mapping[str, Sequence[Quantizer]]
) -> dict[str, np.ndarray]:
    """Omega = Tr(H) / n * ||Q(w) - w||^2 per param and branch (HAWQ-V2, eq. 9)."""
    found = {}
    for name, trace in traces.items():
        w = jnp.asarray(params[name])
        noise = [float(jnp.sum((quantizer(w) - w) ** 2)) for quantizer in branches[name]]
        found[name] = trace.value / trace.elements * np.array(noise)
    return found


def squared_gradients(
    apply: Apply,
    params: Params,
    branches: Mapping[str, Sequence[Quantizer]],
    loss: Callable[[Mapping[str, Any], Mapping[str, Any]], Any],
    batch: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Per tensor and branch, the mean over samples of sum_i g_i^2 (Q(x)_i - x_i)^2 / 2.

    g is the gradient of a sample's `loss(outputs, batch)` at the float network: the diagonal of
    the empirical Fisher matrix in place of the Hessian (BRECQ, Li et al. 2021, eq. 10). One
    backward pass per sample serves all weights, activations and widths.
    """
    values = [np.shape(v)[:1] for v in batch.values()]
    if not values or len(set(values)) != 1:
        raise DataError("a batch needs arrays of the same, positive number of samples")
    names = tuple(branches)
    activations = tuple(name for name in names if name not in params)

    def of_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
        one = {name: value[None] for name, value in sample.items()}
        shapes = jax.eval_shape(lambda: apply(params, {}, one, want=activations))
        zero = {name: jnp.zeros(shapes[name].shape) for name in activations}
        zero |= {name: jnp.zeros(np.shape(params[name])) for name in names if name in params}

        def shifted(shift: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
            probes = {name: Shift(value) for name, value in shift.items()}
            seen = apply(params, probes, one, want=activations)
            return loss(apply(params, probes, one), one), seen

        gradient, seen = jax.grad(shifted, has_aux=True)(zero)
        scores = {}
        for name in names:
            x = jnp.asarray(params[name]) if name in params else seen[name]
            noise = jnp.stack([quantizer(x) - x for quantizer in branches[name]])
            weighed = (gradient[name][None] * noise) ** 2
            scores[name] = weighed.reshape(len(noise), -1).sum(1) / 2
        return scores

    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    scores = jax.jit(lambda arrays: jax.lax.map(of_sample, arrays))(arrays)
    return {name: np.asarray(value, np.float64).mean(0) for name, value in scores.items()}


@struct.dataclass
class Shift:
    """x -> x + delta: where a gradient with respect to the tensor can be taken."""

    delta: Leaf

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x + self.delta
