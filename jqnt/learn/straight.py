"""Rounding learned straight-through on the layer's exact error: AdaQuant and FlexRound."""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.learn.fit import fit
from jqnt.learn.gram import Moments, quadratic
from jqnt.learn.layer import Layer, matrix, tensor
from jqnt.learn.rounding import Rounded
from jqnt.learn.source import Whole
from jqnt.quantizers import Affine

__all__ = ["adaquant", "flexround"]


def adaquant(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    steps: int = 500,
    rate: float = 0.02,
    key: PRNGKeyArray,
) -> Rounded:
    """min over (scale, V) of ||x W - x~ quantizer(W + V)||^2 (AdaQuant, Hubara et al. 2021).

    Weights may end more than a step from where they were. `rate` is in units of the scale for
    V, of a tenth of the scale's logarithm for the scale. What is returned is the best that the
    training met, the start included.
    """
    start = {"shift": jnp.zeros_like(w)}
    return _trained("shift", layer, moments, w, quantizer, start, steps, rate, key)


def flexround(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    steps: int = 500,
    rate: float = 0.02,
    key: PRNGKeyArray,
) -> Rounded:
    """W~ = s1 round(W / (s1 * S2 * s3 * s4)), all positive, learned together (Lee et al. 2023).

    S2 has W's shape, s3 is per output and s4 per input channel; they begin at 1 and train as
    logarithms, so the larger a weight the further it may move. The quantizer has s1, the weight
    that it is given is W / (S2 * s3 * s4).
    """
    groups, out, inner = matrix(layer, w).shape
    start = {
        "all": jnp.zeros((groups, out, inner)),
        "out": jnp.zeros((groups, out, 1)),
        "in": jnp.zeros((groups, 1, inner)),
    }
    return _trained("division", layer, moments, w, quantizer, start, steps, rate, key)


Kind = Literal["shift", "division"]


@dataclass(frozen=True)
class _Loss:
    """Equal for equal layers, so that they share a program."""

    kind: Kind
    layer: Layer

    def __call__(
        self, value: Any, batch: Any, *, step: Any, key: Any
    ) -> tuple[Any, dict[str, Any]]:
        rounded = self.rounded(value, batch)
        delta = matrix(self.layer, rounded.quantizer(rounded.weight) - batch["w"])
        error = jnp.sum(quadratic(batch["moments"], delta))
        # In units of the start's error one rate serves every layer.
        return error / batch["unit"], {"error": error, "now": value}

    def rounded(self, value: Any, batch: Any) -> Rounded:
        """The quantizer and the weight that these parameters stand for."""
        quantizer, w = batch["quantizer"], batch["w"]
        scale = jnp.asarray(quantizer.scale) * jnp.exp(0.1 * value["theta"]["scale"])
        if self.kind == "shift":
            step = quantizer.granularity.expand(quantizer.scale, w.shape)
            weight = w + step * value["theta"]["shift"]
        else:
            parts = value["theta"]
            weight = w * tensor(self.layer, jnp.exp(-parts["all"] - parts["out"] - parts["in"]))
        return Rounded(replace(quantizer, scale=scale), weight)


def _trained(
    kind: Kind,
    layer: Layer,
    moments: Moments,
    w: Array,
    quantizer: Affine,
    start: dict[str, Array],
    steps: int,
    rate: float,
    key: PRNGKeyArray,
) -> Rounded:
    loss = _Loss(kind, layer)
    theta = {**start, "scale": jnp.zeros_like(jnp.asarray(quantizer.scale))}
    batch = {"w": w, "quantizer": quantizer, "moments": moments, "unit": jnp.float32(1)}
    first = jnp.maximum(_error(loss, theta, batch), jnp.finfo(jnp.float32).tiny)
    batch["unit"] = first
    value = {"theta": theta, "best": theta, "least": first}
    found = fit(
        loss, value, _adam(rate, steps), Whole(batch), steps=steps, chunk=max(steps, 1),
        trainable=_moves, project=_keep_best, key=key,
    ).theta  # fmt: skip
    last = _error(loss, found["theta"], batch)
    best = found["theta"] if last < found["least"] else found["best"]
    return loss.rounded({"theta": best}, batch)


@functools.partial(jax.jit, static_argnames=("loss",))
def _error(loss: _Loss, theta: Any, batch: Any) -> Array:
    return loss({"theta": theta}, batch, step=0, key=None)[1]["error"]


def _moves(path: Any, leaf: Any) -> bool:
    return path[0].key == "theta"


def _keep_best(value: Any, aux: Any, *, step: Any) -> Any:
    """Rounding makes the error jump: the best parameters met so far are kept beside."""
    better = aux["error"] < value["least"]
    best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), aux["now"]["theta"], value["best"]
    )
    return {**value, "best": best, "least": jnp.minimum(value["least"], aux["error"])}


@functools.cache
def _adam(rate: float, steps: int) -> optax.GradientTransformation:
    """One object per setting, since compiled programs are shared by identity."""
    return optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1), 0.05))
