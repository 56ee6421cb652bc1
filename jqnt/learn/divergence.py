"""How far a network's outputs lie from where they should: scalars that a search can train on."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import DataError
from jqnt.types import Apply, Params

__all__ = ["Divergence", "cosine_distance", "cross_entropy", "kl", "output_mse", "with_targets"]

Divergence = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""`divergence(outputs, batch) -> scalar`, a mean over samples; `batch` holds the inputs, the
labels if there are any, and the float outputs under "target:" + name."""


def output_mse(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Float[Array, ""]:
    """Mean over outputs of E[(y - target)^2] / E[target^2]."""
    total = jnp.zeros(())
    for name, y in outputs.items():
        target = _target(batch, name)
        power = jnp.maximum(jnp.mean(target**2), jnp.finfo(jnp.float32).tiny)
        total = total + jnp.mean((y - target) ** 2) / power
    return total / len(outputs)


def cosine_distance(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Float[Array, ""]:
    """Mean over outputs and samples of 1 - <y, target> / (|y| |target|)."""
    total = jnp.zeros(())
    for name, y in outputs.items():
        a, b = (jnp.reshape(v, (len(v), -1)) for v in (y, _target(batch, name)))
        norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
        inner = jnp.sum(a * b, axis=1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
        total = total + jnp.mean(1 - inner)
    return total / len(outputs)


def kl(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Float[Array, ""]:
    """Mean over samples of KL(softmax(target) || softmax(y)) over the last axis, first output."""
    name, y = next(iter(outputs.items()))
    wanted = jax.nn.log_softmax(_target(batch, name), axis=-1)
    found = jax.nn.log_softmax(y, axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1))


def cross_entropy(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Float[Array, ""]:
    """Mean over samples of -log softmax(y)[label], first output."""
    if "labels" not in batch:
        raise DataError("the cross-entropy needs labels: an array 'labels' beside the inputs")
    logits = jax.nn.log_softmax(next(iter(outputs.values())), axis=-1)
    labels = jnp.asarray(batch["labels"]).astype(jnp.int32)
    return -jnp.mean(jnp.take_along_axis(logits, labels[..., None], axis=-1))


def with_targets(
    apply: Apply, params: Params, batches: Any, features: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The batches, each with the float network's outputs (and the tensors `features`) beside it;
    DataError if there are none."""

    @jax.jit
    def run(params: Params, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = apply(params, {}, inputs)
        return {**found, **apply(params, {}, inputs, want=features)} if features else found

    found = []
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = run(params, inputs)
        found.append({**batch, **{f"target:{name}": y for name, y in outputs.items()}})
    if not found:
        raise DataError("no batches to search on; at least one is needed")
    return found


def _target(batch: Mapping[str, Any], name: str) -> Any:
    if f"target:{name}" not in batch:
        raise DataError(f"the batch has no float output 'target:{name}'; see with_targets")
    return batch[f"target:{name}"]
