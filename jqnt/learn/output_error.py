"""The scale of a weight that errs least in the layer's output, not in the weight itself."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.errors import ConfigError
from jqnt.learn.gram import Moments, quadratic
from jqnt.learn.layer import Layer, matrix, tensor
from jqnt.learn.reconstruct import Method
from jqnt.learn.rounding import Rounded
from jqnt.quantizers import Affine

__all__ = ["least_output_error"]


def least_output_error(candidates: int = 20, least: float = 0.05) -> Method:
    """A method for `reconstruct`: the scale * f of the least error sum ||x W - x~ W~||^2.

    f runs through `candidates` even steps from `least` to 1; each scale gets its own, and the
    blocks of one output channel share one. The input x~ is that of the network as it is quantized
    so far, so that errors of earlier layers count ("SeqMSE": AIMET 2, sequential MSE). The error
    of a channel is exact over all samples (`quadratic`), whatever their number.
    """
    if candidates < 1 or not 0 < least <= 1:
        raise ConfigError("an output-error search needs candidates and factors in (0, 1]")
    factors = jnp.linspace(least, 1.0, candidates)

    def method(
        layer: Layer, moments: Moments, w: Any, quantizer: Affine, *, key: PRNGKeyArray
    ) -> Rounded:
        return Rounded(_best(layer, moments, w, quantizer, factors), w)

    return method


def _scaled(quantizer: Affine, factor: Float[Array, "..."]) -> Affine:
    return replace(quantizer, scale=quantizer.scale * factor)


@partial(jax.jit, static_argnames=("layer",))
def _best(layer: Layer, moments: Moments, w: Any, quantizer: Affine, factors: Any) -> Affine:
    """The quantizer at the best factor for each of its scales."""
    granularity = quantizer.granularity
    shape = jnp.shape(matrix(layer, w))

    def error(factor: Any) -> Any:
        delta = matrix(layer, _scaled(quantizer, factor)(w) - w)
        each = quadratic(moments, delta)[..., None] / shape[-1]
        return granularity.groups(tensor(layer, jnp.broadcast_to(each, shape))).sum(-1)

    errors = jax.lax.map(error, factors)
    return _scaled(quantizer, factors[jnp.argmin(errors, axis=0)].reshape(quantizer.scale.shape))
