"""The best choice in each row of a quadratic: relaxed, annealed, polished; in few programs."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jqnt.affine import rectified_sigmoid
from jqnt.errors import DataError
from jqnt.learn.fit import within
from jqnt.learn.source import Whole

__all__ = ["annealed", "best_choices", "descend", "regularizer", "soft_logit"]

PANEL = 64
"""Inputs of a panel of `descend`."""
ROWS = 64
"""Rows of a tile."""
LANES = 128
"""Groups of a tile, where each has few inputs."""
FEW = 64
INNER = (16, 64, 192, 384, 640, 1024, 1536)
"""Inputs of a tile, and beyond these any multiple of 512: a handful of programs serves a network,
whose compilation takes longer than what they compute on padding."""


def best_choices(
    gram: Float[np.ndarray, "g k k"],
    cross: Float[np.ndarray, "g o k"],
    low: Float[np.ndarray, "g o k"],
    high: Float[np.ndarray, "g o k"],
    fraction: Float[np.ndarray, "g o k"],
    *,
    steps: int,
    rate: float,
    strength: float,
    key: PRNGKeyArray,
) -> tuple[Bool[np.ndarray, "g o k"], Float[np.ndarray, "g o"]]:
    """What to take, `high` (True) or `low`, and the error dw gram dw' - 2 dw cross' of each row.

    `steps` of Adam on AdaRound's relaxation from h = `fraction`, then coordinate descent on the
    hard choice until no single flip helps; the same descent from the nearest choice competes in
    every row. The error is taken in units of mean(diag gram) * (high - low)^2, which makes one
    rate and one strength of the regularizer serve every layer and width. The error that is
    returned is in these units.

    Raises DataError if an error is not finite.
    """
    data = {**_scaled(gram, cross, low, high), "fraction": fraction}
    up, error = np.zeros(low.shape, bool), np.zeros(low.shape[:2], np.float32)
    settings = np.float32(steps), np.float32(strength), key
    inner = low.shape[-1]
    for place, shape in _tiles(*low.shape):
        tile = {
            name: _padded(x[place[:1] if name == "gram" else place], shape, name == "gram")
            for name, x in data.items()
        }
        found = jax.device_get(_solved(tile, *settings, rate=rate))
        g, o = up[place].shape[:2]
        up[place], error[place] = found[0][:g, :o, :inner], found[1][:g, :o]
    if not np.isfinite(error).all():
        raise DataError(
            "the error of a layer is not finite: look for NaN or infinities in the calibration "
            "data and in the weights"
        )
    return up, error


def _tiles(
    groups: int, rows: int, inner: int
) -> Iterator[tuple[tuple[slice, slice], tuple[int, int, int]]]:
    """(groups, rows) of each tile and the shape that it is padded to."""
    size = next((n for n in INNER if n >= inner), -(-inner // 512) * 512)
    lanes, high = 1, ROWS
    if groups > 1 and size <= FEW:
        lanes, high = LANES, min(1 << (rows - 1).bit_length(), ROWS)
    for g in range(0, groups, lanes):
        for o in range(0, rows, high):
            place = slice(g, min(g + lanes, groups)), slice(o, min(o + high, rows))
            yield place, (lanes, high, size)


def _padded(x: np.ndarray, shape: tuple[int, int, int], square: bool) -> np.ndarray:
    """With zeros, which no choice changes the error of."""
    full = np.zeros((shape[0], shape[2], shape[2]) if square else shape, np.float32)
    full[tuple(slice(n) for n in x.shape)] = x
    return full


@functools.partial(jax.jit, static_argnames=("rate",))
def _solved(
    data: dict[str, Any], steps: Any, strength: Any, key: PRNGKeyArray, *, rate: float
) -> tuple[Bool[Array, "g o k"], Float[Array, "g o"]]:
    """The best in each row of what descends from the learned logits, and from the nearest."""
    batch = {**data, "steps": steps, "strength": strength}
    start = {"logit": soft_logit(data["fraction"])}
    count = steps.astype(jnp.int32)
    found = within(annealed, start, _adam(rate), Whole(batch), steps=count, key=key)
    starts = jnp.concatenate([data["fraction"] > 0.5, found["logit"] >= 0], 1)
    twice = {name: x if name == "gram" else jnp.concatenate([x, x], 1) for name, x in data.items()}
    up = descend(twice, starts)
    (near, learned), (first, second) = jnp.split(up, 2, 1), jnp.split(_error(twice, up), 2, 1)
    return jnp.where((second < first)[..., None], learned, near), jnp.minimum(first, second)


def _scaled(gram: Any, cross: Any, low: Any, high: Any) -> dict[str, Any]:
    """The quadratic in units of mean(diag gram) and of the step of each row."""
    diagonal = np.diagonal(gram, axis1=1, axis2=2).mean(-1)[:, None, None]
    # A group whose inputs are all zero has no error, whatever it rounds to.
    diagonal = np.where(diagonal > 0, diagonal, 1)
    step = (high - low).max(-1, keepdims=True)
    step = np.where(step > 0, step, 1)
    return {
        "gram": gram / diagonal, "cross": cross / diagonal / step,
        "low": low / step, "high": high / step,
    }  # fmt: skip


def soft_logit(fraction: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """V with h(V) = fraction: -ln(1.2 / (fraction + 0.1) - 1), so that training starts at w."""
    return -jnp.log(1.2 / (jnp.clip(fraction, 1e-3, 1 - 1e-3) + 0.1) - 1)


def annealed(
    value: dict[str, Any], batch: dict[str, Any], *, step: Any, key: Any
) -> tuple[Any, dict[str, Any]]:
    """error(h) + strength * sum(1 - |2h - 1|^beta) (Nagel et al. 2020, eq. 21, 24).

    beta falls from 20 to 2 along a cosine after a warm start of 20 % without the regularizer.
    """
    h = rectified_sigmoid(value["logit"])
    error = jnp.sum(_error(batch, h))
    binary = regularizer(h, step / batch["steps"])
    return error + batch["strength"] * binary, {"error": error, "binary": binary}


def regularizer(h: Float[Array, "..."], progress: Float[Array, ""]) -> Float[Array, ""]:
    """sum(1 - |2h - 1|^beta), 0 during the first 20 %; `progress` runs from 0 to 1."""
    after = jnp.clip((progress - 0.2) / 0.8, 0, 1)
    beta = 2 + 9 * (1 + jnp.cos(jnp.pi * after))
    return jnp.where(progress < 0.2, 0, jnp.sum(_openness(h, beta)))


@jax.custom_jvp
def _openness(h: Float[Array, "..."], beta: Float[Array, ""]) -> Float[Array, "..."]:
    """1 - |2h - 1|^beta. XLA's own power and its derivative take half of a small layer's step."""
    return 1 - _power(jnp.abs(2 * h - 1), beta)


@_openness.defjvp
def _openness_jvp(primals, tangents):
    """For h alone: beta is a schedule, it does not train."""
    h, beta = primals
    u = 2 * h - 1
    below = _power(jnp.abs(u), beta - 1)
    return 1 - below * jnp.abs(u), -2 * beta * below * jnp.sign(u) * tangents[0]


def _power(a: Float[Array, "..."], beta: Float[Array, ""]) -> Float[Array, "..."]:
    return jnp.exp(beta * jnp.log(jnp.maximum(a, 1e-9)))


@jax.jit
def descend(data: dict[str, Any], up: Bool[Array, "g o k"]) -> Bool[Array, "g o k"]:
    """Flips single choices, input by input, as long as that lowers a channel's error.

    A flip of dw_k by e changes the error by 2 e gradient_k + e^2 gram_kk. All output channels
    move at once. Ends when a sweep flips nothing, after 20 sweeps at the latest. Inputs are taken
    in panels: within one only its own gradient is kept, the others are told of it by one product.
    """
    inner = up.shape[-1]
    panel = inner if inner <= PANEL else PANEL
    rest = -inner % panel
    padded = {
        name: jnp.pad(x, ((0, 0), (0, rest if name == "gram" else 0), (0, rest)))
        for name, x in data.items()
        if name in ("gram", "cross", "low", "high")
    }
    gram, cross, low, high = (padded[name] for name in ("gram", "cross", "low", "high"))
    up = jnp.pad(up, ((0, 0), (0, 0), (0, rest)))
    width = jnp.moveaxis(high - low, -1, 0)
    delta = low + up * (high - low)
    gradient = jnp.einsum("gok,gkl->lgo", delta, gram) - jnp.moveaxis(cross, -1, 0)
    columns = jnp.moveaxis(gram, -1, 0)
    """[l, g, k]"""

    def flip(k, carry, first):
        up, gradient, change, flips = carry
        own, column = width[first + k], columns[first + k]
        e = jnp.where(up[k], -own, own)
        diagonal = jax.lax.dynamic_index_in_dim(column, first + k, 1)
        helps = 2 * e * gradient[k] + e**2 * diagonal < 0
        e = jnp.where(helps, e, 0)
        here = jax.lax.dynamic_slice_in_dim(column, first, panel, 1)
        gradient = gradient + here.T[:, :, None] * e[None]
        return up.at[k].set(up[k] ^ helps), gradient, change.at[k].set(e), flips + jnp.sum(helps)

    def panels(i, carry):
        up, gradient, flips = carry
        first = i * panel
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=panel)
        start = (part(up), part(gradient), jnp.zeros_like(part(gradient)), flips)
        mine, own, change, flips = jax.lax.fori_loop(
            0, panel, functools.partial(flip, first=first), start
        )
        up = jax.lax.dynamic_update_slice_in_dim(up, mine, first, 0)
        if panel == inner:
            return up, own, flips
        told = jnp.einsum("lgk,lgo->kgo", part(columns), change)
        return up, gradient + told, flips

    def sweep(carry):
        up, gradient, sweeps, _ = carry
        count = (inner + rest) // panel
        up, gradient, flips = jax.lax.fori_loop(0, count, panels, (up, gradient, 0))
        return up, gradient, sweeps + 1, flips

    start = (jnp.moveaxis(up, -1, 0), gradient, 0, 1)
    up = jax.lax.while_loop(lambda c: (c[3] > 0) & (c[2] < 20), sweep, start)[0]
    return jnp.moveaxis(up[:inner], 0, -1)


def _error(data: dict[str, Any], h: Array) -> Float[Array, "g o"]:
    """The quadratic, less its constant, for choices h between 0 (down) and 1 (up).

    Its derivative is 2 (dw gram - cross), written so that one product serves both.
    """
    delta = data["low"] + h * (data["high"] - data["low"])
    half = jax.lax.stop_gradient(jnp.einsum("gok,gkl->gol", delta, data["gram"]))
    square = 2 * half * delta - jax.lax.stop_gradient(half * delta)
    return jnp.sum(square - 2 * data["cross"] * delta, -1)


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One object per rate, since compiled programs are shared by identity."""
    return optax.adam(rate)
