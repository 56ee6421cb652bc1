"""The best rounding of a layer under the exact quadratic error: AdaRound in Gram form, polished."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jqnt.affine import divide
from jqnt.errors import UnsupportedError
from jqnt.learn.gram import Moments
from jqnt.learn.layer import Layer, matrix, tensor
from jqnt.learn.rows import best_choices, soft_logit
from jqnt.quantizers import Affine, SoftRound, grid, neighbours

__all__ = [
    "Rounded",
    "choices",
    "closed",
    "kept",
    "learn_rounding",
    "opened",
    "refit",
    "rounded_up",
    "soft_of",
    "soft_start",
]

SURE = 4.0
"""A logit beyond which the rectified sigmoid is exactly 0 or 1 (it is from 2.4 on)."""


class Rounded(NamedTuple):
    """The quantizer of a weight, and the float weight that it is to quantize."""

    quantizer: Affine | SoftRound
    weight: Any


def learn_rounding(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    steps: int = 500,
    rate: float = 0.1,
    strength: float = 0.3,
    ridge: float | None = None,
    key: PRNGKeyArray,
) -> Rounded:
    """The rounding of each weight, up or down, that minimizes the quadratic error.

    `steps` of Adam on AdaRound's relaxation, then coordinate descent on the hard choice until no
    single flip helps; the same descent from rounding to nearest competes in every output
    channel, so that none is ever worse than nearest. The error is taken in units of
    mean(diag gram) * scale^2 per channel, which makes one rate and one strength of the
    regularizer serve every layer and width.

    With `ridge` it is not w that is rounded up or down, but the weight that makes up best for
    the errors in the layer's input, `refit(layer, moments, w, ridge)`, where that ends better.
    """
    bases = [w] if ridge is None else [w, refit(layer, moments, w, ridge)]
    rows = [jax.device_get(_choices(layer.form, w, base, quantizer)) for base in bases]
    low, high, fraction = (np.concatenate(parts, 1) for parts in zip(*rows, strict=True))
    cross = np.concatenate([moments.cross] * len(bases), 1)
    up, error = best_choices(
        np.asarray(moments.gram), cross, low, high, fraction,
        steps=steps, rate=rate, strength=strength, key=key,
    )  # fmt: skip
    if ridge is None:
        return Rounded(rounded_up(layer.form, quantizer, up), w)
    (kept, moved), (up, other) = np.split(error, 2, 1), np.split(up, 2, 1)
    better = (moved < kept)[..., None]
    base = np.where(better, *(np.asarray(matrix(layer, b)) for b in reversed(bases)))
    chosen = rounded_up(layer.form, quantizer, np.where(better, other, up))
    return Rounded(chosen, tensor(layer, jnp.asarray(base)))


@functools.partial(jax.jit, static_argnames=("layer",))
def _choices(layer: Layer, w: Any, base: Any, quantizer: Affine) -> tuple[Any, Any, Any]:
    return choices(layer, w, base, quantizer)


def choices(
    layer: Layer, w: Float[Array, "..."], base: Float[Array, "..."], quantizer: Affine
) -> tuple[Float[Array, "g o k"], Float[Array, "g o k"], Float[Array, "g o k"]]:
    """(W~ - w with W~ = base rounded down, the same rounded up, the fraction of base / scale)."""
    scale, zero_point, qmin, qmax = grid(quantizer, w.shape)
    below, above, fraction = neighbours(quantizer, divide(base, scale), w.shape)

    def change(code):
        return matrix(layer, (jnp.clip(code + zero_point, qmin, qmax) - zero_point) * scale - w)

    return change(below), change(above), matrix(layer, fraction)


def refit(
    layer: Layer, moments: Moments, w: Float[Array, "..."], ridge: float
) -> Float[Array, "..."]:
    """w + argmin over dW of sum ||r - x~ dW||^2 + ridge * mean(diag gram) * ||dW||^2."""
    gram, cross = (np.asarray(x, np.float64) for x in (moments.gram, moments.cross))
    mean = np.diagonal(gram, axis1=1, axis2=2).mean(-1)
    lifted = ridge * np.where(mean > 0, mean, 1)
    gram = gram + lifted[:, None, None] * np.eye(gram.shape[-1])
    change = np.linalg.solve(gram, np.swapaxes(cross, 1, 2)).astype(np.float32)
    return w + tensor(layer, jnp.asarray(np.swapaxes(change, 1, 2)))


@functools.partial(jax.jit, static_argnames=("layer",))
def rounded_up(layer: Layer, quantizer: Affine, up: Bool[Array, "g o k"]) -> SoftRound:
    """The quantizer that rounds up where `up` says, and down elsewhere."""
    return soft_of(quantizer, tensor(layer, jnp.where(up, SURE, -SURE)))


def soft_of(quantizer: Affine, logit: Float[Array, "..."]) -> SoftRound:
    """The grid with a rounding of its own.

    Raises UnsupportedError for a grid that stands half a step off zero.
    """
    if quantizer.shifted:
        raise UnsupportedError(
            "rounding is learned on grids with a zero; give this weight another format than "
            "a shifted one"
        )
    quantizer = quantizer.on_grid()
    return SoftRound(
        quantizer.scale,
        quantizer.zero_point,
        quantizer.bits,
        logit,
        quantizer.signed,
        quantizer.strict,
        quantizer.granularity,
    )


def soft_start(quantizer: Affine, w: Float[Array, "..."]) -> SoftRound:
    """The grid with a rounding that starts at `w` itself, between the codes beside it."""
    v = divide(w, grid(quantizer, w.shape)[0])
    return soft_of(quantizer, soft_logit(neighbours(quantizer, v, w.shape)[2]))


def opened(quantizer: Affine | SoftRound, w: Float[Array, "..."]) -> SoftRound:
    """A quantizer whose rounding can move: from w itself, or from a choice that was learned."""
    if isinstance(quantizer, SoftRound):
        return replace(quantizer, logit=jnp.clip(quantizer.logit, -1, 1))
    return soft_start(quantizer, w)


def closed(quantizer: SoftRound) -> SoftRound:
    """Up where the logit says so, down elsewhere."""
    return replace(quantizer, logit=jnp.where(quantizer.logit >= 0, SURE, -SURE))


def kept(quantizer: Affine | SoftRound, w: Float[Array, "..."]) -> SoftRound:
    """What the quantizer makes of w already, as hard choices."""
    return closed(quantizer if isinstance(quantizer, SoftRound) else soft_start(quantizer, w))
