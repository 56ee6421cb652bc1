"""The exact full-batch error of a layer's weight perturbation, from second moments alone."""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.learn.layer import Layer, outputs, patches, product
from jqnt.types import Leaf

__all__ = ["Moments", "accumulate", "best_bias", "centred", "quadratic", "zero_moments"]


@struct.dataclass
class Moments:
    """Sums over samples and positions s, for patches p~ of the quantized network's input x~ and
    the residual r = (x - x~) W, x being the float network's input:

        gram [g, k, l]   sum p~[k] p~[l]
        cross [g, o, k]  sum r[o] p~[k]
        power [g, o]     sum r[o]^2
        patch [g, k]     sum p~[k]
        residual [g, o]  sum r[o]
        signal [g, o]    sum y[o]^2, y = x W the float output without bias
        count            number of samples and positions

    With dW = W~ - W the layer's error is sum ||x W - x~ W~||^2 = sum ||r - x~ dW||^2
    = tr(dW gram dW') - 2 tr(dW cross') + power: asymmetric reconstruction (Nagel et al. 2020,
    section 3.3.2) without samples.
    """

    gram: Leaf
    cross: Leaf
    power: Leaf
    patch: Leaf
    residual: Leaf
    signal: Leaf
    count: Leaf


def zero_moments(groups: int, out: int, inner: int) -> Moments:
    """Before the first batch; on the host, so that no program is compiled for it."""

    def z(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    return Moments(
        z(groups, inner, inner), z(groups, out, inner), z(groups, out), z(groups, inner),
        z(groups, out), z(groups, out), z(),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("layer",), donate_argnames=("moments",))
def accumulate(
    layer: Layer,
    moments: Moments,
    w: Float[Array, "..."],
    exact: Float[Array, "..."],
    lossy: Float[Array, "..."],
) -> Moments:
    """Adds a batch: the layer's input in the float network and in the quantized one."""
    size = _chunk(layer, lossy)
    if size == len(lossy):
        return _added(layer, moments, w, exact, lossy)
    chunks = [x.reshape(-1, size, *x.shape[1:]) for x in (exact, lossy)]

    def step(total, pair):
        return _added(layer, total, w, *pair), None

    return jax.lax.scan(step, jax.tree.map(jnp.asarray, moments), tuple(chunks))[0]


CACHE = 2**22
"""Bytes of patches that are made at a time: beyond, writing and reading them takes most of the
time of the products."""


def _chunk(layer: Layer, x: Array) -> int:
    """How many samples' patches are made at a time, a divisor of all; all where none are copied."""
    shapes = jax.eval_shape(functools.partial(patches, layer), x)
    if len(shapes) == 1 or layer.groups > 1:
        return len(x)
    size = sum(4 * math.prod(s.shape) for s in shapes) / len(x)
    return next(
        n for n in range(len(x), 0, -1) if (len(x) % n == 0 and n * size <= CACHE) or n == 1
    )


def _added(layer: Layer, moments: Moments, w: Array, exact: Array, lossy: Array) -> Moments:
    parts = patches(layer, lossy)
    r = outputs(layer, product(layer, exact - lossy, w))
    y = outputs(layer, product(layer, exact, w))
    gram, cross = _products(parts, r)
    return Moments(
        gram=moments.gram + gram,
        cross=moments.cross + cross,
        power=moments.power + jnp.sum(r * r, 0),
        patch=moments.patch + jnp.concatenate([jnp.sum(p, 0) for p in parts], -1),
        residual=moments.residual + jnp.sum(r, 0),
        signal=moments.signal + jnp.sum(y * y, 0),
        count=moments.count + parts[0].shape[0],
    )


def centred(moments: Moments) -> Moments:
    """The moments about the mean: their error is the one that the best bias leaves.

    min over b of sum ||r - x~ dW - b||^2, whose minimizer is `best_bias`.
    """
    n = moments.count
    p, r = moments.patch / n, moments.residual / n
    return replace(
        moments,
        gram=moments.gram - n * p[:, :, None] * p[:, None, :],
        cross=moments.cross - n * r[:, :, None] * p[:, None, :],
        power=moments.power - n * r**2,
    )


def best_bias(moments: Moments, delta: Float[Any, "groups out inner"]) -> Float[Any, "groups out"]:
    """mean(r) - dW mean(p~): what to add to the bias (empirical bias correction)."""
    return (moments.residual - (delta @ moments.patch[:, :, None])[..., 0]) / moments.count


def quadratic(moments: Moments, delta: Float[Any, "groups out inner"]) -> Float[Any, "groups out"]:
    """The error of each output channel: dw' gram dw - 2 dw' cross + power.

    Like `centred` and `best_bias` it takes arrays of JAX and of numpy, whose results they keep:
    on the host the bookkeeping between layers compiles nothing.
    """
    half = delta @ moments.gram - 2 * moments.cross
    return (half * delta).sum(-1) + moments.power


def _products(
    parts: list[Float[Array, "samples groups part"]], r: Float[Array, "samples groups out"]
) -> tuple[Float[Array, "groups inner inner"], Float[Array, "groups out inner"]]:
    """sum_s p p' and sum_s r p' for each group."""
    groups, part = parts[0].shape[1:]
    if groups > 1 and part == 1:
        # Depthwise: XLA's batched products of tiny matrices take twice as long as one fused
        # reduction for each pair of taps.
        taps = [p[:, :, 0] for p in parts]
        pair = {
            (a, b): jnp.sum(p * q, 0)
            for a, p in enumerate(taps)
            for b, q in enumerate(taps[: a + 1])
        }
        rows = [
            jnp.stack([pair[max(a, b), min(a, b)] for b in range(len(taps))], -1)
            for a in range(len(taps))
        ]
        cross = jnp.stack([jnp.sum(r * p[:, :, None], 0) for p in taps], -1)
        return jnp.stack(rows, 1), cross
    p = jnp.concatenate(parts, -1)
    if groups == 1:
        p, r = p[:, 0], r[:, 0]
        return (p.T @ p)[None], (r.T @ p)[None]
    return jnp.einsum("sgk,sgl->gkl", p, p), jnp.einsum("sgo,sgk->gok", r, p)
