"""Latency as a function of real-valued bit widths, interpolated between the legal ones."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import ConfigError
from jqnt.npu.tables import Tables, expected_latency

__all__ = ["bit_probabilities", "latency_of_bits"]


def latency_of_bits(
    tables: Tables,
    weight_bits: Float[Array, " groups"],
    activation_bits: Float[Array, " groups"],
) -> Float[Array, ""]:
    """Seconds at real-valued widths: bilinear between the table's integer pairs, constant beyond.

    Equal to the table at every legal pair; its slopes in the bits are those of the cells.
    """
    return expected_latency(tables, bit_probabilities(tables, weight_bits, activation_bits))


def bit_probabilities(
    tables: Tables,
    weight_bits: Float[Array, " groups"],
    activation_bits: Float[Array, " groups"],
) -> Float[Array, "groups pairs"]:
    """The weights of the pairs around (weight_bits, activation_bits), which sum to one.

    Where a corner of the cell is illegal, the others share its weight. Raises ConfigError if the
    tables hold no integer pair.
    """
    integers = [k for k, pair in enumerate(tables.pairs) if not pair.floating]
    if not integers:
        raise ConfigError("no integer formats in the tables: nothing to interpolate between")
    w = _hats(weight_bits, sorted({tables.pairs[k].weight_bits for k in integers}))
    a = _hats(activation_bits, sorted({tables.pairs[k].activation_bits for k in integers}))
    columns = []
    for k, pair in enumerate(tables.pairs):
        if k in integers:
            columns.append(w[pair.weight_bits] * a[pair.activation_bits])
        else:
            columns.append(jnp.zeros_like(weight_bits))
    share = jnp.stack(columns, axis=1) * tables.legal
    total = jnp.sum(share, axis=1, keepdims=True)
    alone = tables.legal * jnp.asarray([float(k in integers) for k in range(len(columns))])[None]
    alone = alone / jnp.maximum(jnp.sum(alone, axis=1, keepdims=True), 1.0)
    return jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), alone)


def _hats(bits: Float[Array, " groups"], widths: list[int]) -> dict[int, Array]:
    """Width -> its weight: 1 there, falling linearly to 0 at the widths beside it."""
    bits = jnp.clip(bits, widths[0], widths[-1])
    found = {}
    for i, width in enumerate(widths):
        rise = (bits - widths[i - 1]) / (width - widths[i - 1]) if i else 1.0 + 0 * bits
        last = i + 1 == len(widths)
        fall = 1.0 + 0 * bits if last else (widths[i + 1] - bits) / (widths[i + 1] - width)
        found[width] = jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)
    return found
