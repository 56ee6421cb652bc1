"""Numbers of narrow float formats: one by one, and in blocks that share a scale of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jqnt.affine import divide, round_ste
from jqnt.formats import Integer, Microscaling, Minifloat
from jqnt.granularity import Granularity

__all__ = ["block_scales", "microscaled", "nearest_minifloat"]


def nearest_minifloat(x: Float[Array, "..."], fmt: Minifloat) -> Float[Array, "..."]:
    """The nearest number of `fmt`, ties to even, saturating; the derivative is 1 inside."""
    x = jnp.clip(x, -fmt.max, fmt.max)
    _, exponent = jnp.frexp(jax.lax.stop_gradient(x))
    exponent = jnp.maximum(exponent - 1, 1 - fmt.bias) - fmt.mantissa
    step = jnp.ldexp(jnp.float32(1), jnp.maximum(exponent, -126))
    return round_ste(x / step) * step


def block_scales(
    x: Float[Array, "..."], fmt: Microscaling, axis: int, scale: Float[Array, ""] | float = 1.0
) -> Float[Array, "..."]:
    """The scale of every block of `x` along `axis`, of the shape that `Granularity` gives blocks.

    Powers of two stay above 2^-126, float32's smallest normal number. Blocks of zeros have a
    scale that no value can be seen by: 1 or the like. No gradient passes.
    """
    largest = jnp.max(jnp.abs(Granularity(axis, fmt.block).groups(x)), axis=-1)
    largest = jax.lax.stop_gradient(largest)
    if fmt.scale is not None:
        top = jnp.float32(_largest(fmt.element))
        found = nearest_minifloat(divide(largest, top * jnp.asarray(scale)), fmt.scale)
        found = jax.lax.stop_gradient(found) * scale
        return jnp.where(found > 0, found, jnp.inf)
    _, exponent = jnp.frexp(largest)
    top = int(np.floor(np.log2(_largest(fmt.element))))
    return jnp.ldexp(jnp.float32(1), jnp.clip(exponent - 1 - top, -126, 127))


def microscaled(
    x: Float[Array, "..."], fmt: Microscaling, axis: int, scale: Float[Array, ""] | float = 1.0
) -> Float[Array, "..."]:
    """element(x / X) * X with a scale X per block along `axis`; the derivative is 1 inside.

    OCP MX 1.0, section 6.3; for a minifloat X, NVIDIA 2025 (arXiv 2509.25149), appendix C, where
    `scale` is the tensor's max|x| / (element.max * scale.max). A block whose X underflows is zero.
    """
    blocks = block_scales(x, fmt, axis, scale)
    shared = Granularity(axis, fmt.block).expand(blocks, x.shape)
    dead = jnp.isinf(shared)
    shared = jnp.where(dead, 1, shared)
    v = divide(x, shared)
    return jnp.where(dead, 0 * x, _element(v, fmt.element) * shared)


def _element(v: Float[Array, "..."], fmt: Integer | Minifloat) -> Any:
    if isinstance(fmt, Minifloat):
        return nearest_minifloat(v, fmt)
    low, high = fmt.limits
    unit = 2.0 ** (fmt.bits - 2)
    return round_ste(jnp.clip(v * unit, low, high)) / unit


def _largest(fmt: Integer | Minifloat) -> float:
    """The largest number of an element; integers are fractions with one bit before the point."""
    return fmt.max if isinstance(fmt, Minifloat) else fmt.limits[1] / 2.0 ** (fmt.bits - 2)
