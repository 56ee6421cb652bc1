"""GPTQ: rounds input by input, and lets what is left make up for each error."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jqnt.learn.gram import Moments
from jqnt.learn.layer import Layer, matrix, tensor
from jqnt.learn.rounding import Rounded, refit
from jqnt.quantizers import Affine, grid

__all__ = ["gptq"]


def gptq(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    quantizer: Affine,
    *,
    damp: float = 0.01,
    by_activity: bool = True,
    asymmetric: bool = False,
    key: PRNGKeyArray | None = None,
) -> Rounded:
    """Codes found column by column of the Hessian's Cholesky factor (Frantar et al. 2023).

    With H = gram + damp * mean(diag gram) * I and U the upper Cholesky factor of its inverse, for
    each input k in order:

        q_k = quantizer(w_k),   W[:, k:] -= (w_k - q_k) / U_kk * U[k, k:]

    `by_activity` takes the inputs in the order of falling H_kk ("act-order"). With `asymmetric`
    the float target is not W but the weight that makes up best for the errors in the layer's
    input, `refit`. An input that is always zero has its weights rounded to nearest. Scales, one
    for a tensor, a channel or a block, are the quantizer's own and stay.
    """
    target = refit(layer, moments, w, damp) if asymmetric else w
    gram = np.asarray(moments.gram, np.float64)
    upper, order = _factor(gram, damp, by_activity)
    codes = _rounded(layer, target, quantizer, upper.astype(np.float32), order)
    return Rounded(quantizer, codes)


def _factor(gram: np.ndarray, damp: float, by_activity: bool) -> tuple[np.ndarray, np.ndarray]:
    """(U of each group, in the order of inputs taken; that order), in float64."""
    inner = gram.shape[-1]
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    mean = diagonal.mean(-1, keepdims=True)
    dead = diagonal <= 0
    lifted = np.where(dead, np.where(mean > 0, mean, 1.0), damp * mean)
    order = np.broadcast_to(np.arange(inner), diagonal.shape)
    if by_activity:
        order = np.argsort(-diagonal, axis=-1, kind="stable")
    h = gram + lifted[:, :, None] * np.eye(inner)
    h = np.take_along_axis(np.take_along_axis(h, order[:, :, None], 1), order[:, None, :], 2)
    # inv(H) = U' U with U upper: the transposed lower factor.
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), 1, 2), order


@functools.partial(jax.jit, static_argnames=("layer",))
def _rounded(layer: Layer, w: Array, quantizer: Affine, upper: Any, order: Any) -> Array:
    """The weight on its grid."""
    settings = [jnp.broadcast_to(v, w.shape) for v in grid(quantizer, w.shape)]
    # [inner, groups, out], inputs in the order in which they are taken.
    index = order[:, None, :]
    scale, zero, low, high = (
        jnp.moveaxis(jnp.take_along_axis(matrix(layer, v), index, 2), 2, 0) for v in settings
    )
    rest = jnp.take_along_axis(matrix(layer, w), index, 2)
    pivot = jnp.diagonal(upper, axis1=1, axis2=2)

    def column(k, carry):
        rest, found = carry
        x = rest[:, :, k]
        code = jnp.clip(jnp.round(x / scale[k]) + zero[k], low[k], high[k])
        q = (code - zero[k]) * scale[k]
        error = (x - q) / pivot[:, k, None]
        return rest - error[:, :, None] * upper[:, k][:, None, :], found.at[k].set(q)

    found = jax.lax.fori_loop(0, rest.shape[-1], column, (rest, jnp.zeros_like(scale)))[1]
    back = jnp.argsort(order, -1)[:, None, :]
    return tensor(layer, jnp.take_along_axis(jnp.moveaxis(found, 0, 2), back, 2))
