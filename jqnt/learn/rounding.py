"""The best rounding of a layer under the exact quadratic error: AdaRound in Gram form, polished."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jqnt.affine import divide, rectified_sigmoid
from jqnt.errors import UnsupportedError
from jqnt.learn.fit import fit
from jqnt.learn.gram import Moments
from jqnt.learn.layer import Layer, matrix, tensor
from jqnt.learn.source import Whole
from jqnt.quantizers import Affine, SoftRound, grid

__all__ = [
    "Rounded",
    "annealed",
    "choices",
    "descend",
    "learn_rounding",
    "refit",
    "rounded_up",
    "soft_logit",
    "soft_of",
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
    kept = _round(layer, moments, w, w, quantizer, steps, rate, strength, key)
    if ridge is None:
        return Rounded(rounded_up(layer, quantizer, kept.up), w)
    base = refit(layer, moments, w, ridge)
    moved = _round(layer, moments, w, base, quantizer, steps, rate, strength, key)
    better = (moved.error < kept.error)[..., None]
    up = jnp.where(better, moved.up, kept.up)
    base = tensor(layer, jnp.where(better, matrix(layer, base), matrix(layer, w)))
    return Rounded(rounded_up(layer, quantizer, up), base)


class _Choice(NamedTuple):
    up: Any
    error: Any


def _round(
    layer: Layer,
    moments: Moments,
    w: Array,
    base: Array,
    quantizer: Affine,
    steps: int,
    rate: float,
    strength: float,
    key: PRNGKeyArray,
) -> _Choice:
    """The choices for `base`, and the error that each output channel is left with."""
    data, up, error, logit = _prepared(layer, moments, w, base, quantizer)
    if steps:
        batch = {**data, "steps": jnp.float32(steps), "strength": jnp.float32(strength)}
        start = {"logit": logit}
        found = fit(annealed, start, _adam(rate), Whole(batch), steps=steps, chunk=steps, key=key)
        up, error = _better(data, up, error, found.theta["logit"])
    return _Choice(up, error)


@functools.partial(jax.jit, static_argnames=("layer",))
def _prepared(
    layer: Layer, moments: Moments, w: Array, base: Array, quantizer: Affine
) -> tuple[dict[str, Any], Array, Array, Array]:
    """The quadratic, what descends from rounding to nearest, its error, and the first logits."""
    low, high, fraction = choices(layer, w, base, quantizer)
    data = _scaled(moments, low, high)
    up = descend(data, fraction > 0.5)
    return data, up, _error(data, up), soft_logit(fraction)


@jax.jit
def _better(data: dict[str, Any], up: Array, error: Array, logit: Array) -> tuple[Array, Array]:
    """Per output channel, what descends from the learned logits if that is better than `up`."""
    relaxed = descend(data, logit >= 0)
    less = _error(data, relaxed)
    return jnp.where((less < error)[..., None], relaxed, up), jnp.minimum(less, error)


def choices(
    layer: Layer, w: Float[Array, "..."], base: Float[Array, "..."], quantizer: Affine
) -> tuple[Float[Array, "g o k"], Float[Array, "g o k"], Float[Array, "g o k"]]:
    """(W~ - w with W~ = base rounded down, the same rounded up, the fraction of base / scale)."""
    scale, zero_point, qmin, qmax = grid(quantizer, w.shape)
    v = divide(base, scale)
    floor = jnp.floor(v)

    def change(code):
        return matrix(layer, (jnp.clip(code + zero_point, qmin, qmax) - zero_point) * scale - w)

    return change(floor), change(floor + 1), matrix(layer, v - floor)


def refit(
    layer: Layer, moments: Moments, w: Float[Array, "..."], ridge: float
) -> Float[Array, "..."]:
    """w + argmin over dW of sum ||r - x~ dW||^2 + ridge * mean(diag gram) * ||dW||^2."""
    inner = moments.gram.shape[-1]
    diagonal = jnp.mean(jnp.diagonal(moments.gram, axis1=1, axis2=2), -1)
    diagonal = jnp.where(diagonal > 0, diagonal, 1)[:, None, None]
    gram = moments.gram / diagonal + ridge * jnp.eye(inner)[None]
    change = jnp.linalg.solve(gram, jnp.swapaxes(moments.cross / diagonal, 1, 2))
    return w + tensor(layer, jnp.swapaxes(change, 1, 2))


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
    move at once. Ends when a sweep flips nothing, after 20 sweeps at the latest.
    """
    gram, low, high = data["gram"], data["low"], data["high"]
    inner = gram.shape[-1]
    width = jnp.moveaxis(high - low, -1, 0)
    delta = low + up * (high - low)
    gradient = jnp.einsum("gok,gkl->lgo", delta, gram) - jnp.moveaxis(data["cross"], -1, 0)
    diagonal = jnp.moveaxis(jnp.diagonal(gram, axis1=1, axis2=2), -1, 0)

    def flip(k, carry):
        up, gradient, flips = carry
        e = jnp.where(up[k], -width[k], width[k])
        helps = 2 * e * gradient[k] + e**2 * diagonal[k][:, None] < 0
        e = jnp.where(helps, e, 0)
        gradient = gradient + gram[:, k].T[:, :, None] * e[None]
        return up.at[k].set(up[k] ^ helps), gradient, flips + jnp.sum(helps)

    def sweep(carry):
        up, gradient, sweeps, _ = carry
        up, gradient, flips = jax.lax.fori_loop(0, inner, flip, (up, gradient, 0))
        return up, gradient, sweeps + 1, flips

    start = (jnp.moveaxis(up, -1, 0), gradient, 0, 1)
    up = jax.lax.while_loop(lambda c: (c[3] > 0) & (c[2] < 20), sweep, start)[0]
    return jnp.moveaxis(up, 0, -1)


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One object per rate, since compiled programs are shared by identity."""
    return optax.adam(rate)


def _scaled(moments: Moments, low: Array, high: Array) -> dict[str, Any]:
    """The quadratic in units of mean(diag gram) and of the step of each output channel."""
    diagonal = jnp.mean(jnp.diagonal(moments.gram, axis1=1, axis2=2), -1)[:, None, None]
    # A group whose inputs are all zero has no error, whatever it rounds to.
    diagonal = jnp.where(diagonal > 0, diagonal, 1)
    step = jnp.max(high - low, -1, keepdims=True)
    step = jnp.where(step > 0, step, 1)
    return {
        "gram": moments.gram / diagonal,
        "cross": moments.cross / diagonal / step,
        "low": low / step,
        "high": high / step,
    }


def _error(data: dict[str, Any], h: Array) -> Float[Array, "g o"]:
    """The quadratic, less its constant, for choices h between 0 (down) and 1 (up).

    Its derivative is 2 (dw gram - cross), written so that one product serves both.
    """
    delta = data["low"] + h * (data["high"] - data["low"])
    half = jax.lax.stop_gradient(jnp.einsum("gok,gkl->gol", delta, data["gram"]))
    square = 2 * half * delta - jax.lax.stop_gradient(half * delta)
    return jnp.sum(square - 2 * data["cross"] * delta, -1)
