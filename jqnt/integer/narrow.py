"""Accumulators narrower than 32 bits, to see what they cost."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Int

from jqnt.errors import ConfigError

__all__ = ["Accumulator", "narrowed"]


@dataclass(frozen=True)
class Accumulator:
    """Accumulators of fewer bits, as an experiment.

    "wrap" keeps the low bits, which no order of summation changes; "saturate" clips the finished
    sum, bias included.
    """

    bits: int
    overflow: Literal["wrap", "saturate"] = "wrap"

    def __post_init__(self):
        if not 2 <= self.bits <= 32:
            raise ConfigError(f"an accumulator has 2 to 32 bits, not {self.bits}")
        if self.overflow not in ("wrap", "saturate"):
            raise ConfigError(f"overflow is 'wrap' or 'saturate', not {self.overflow!r}")


def narrowed(acc: Int[Array, "..."], bias: Any, accumulator: Accumulator) -> Int[Array, "..."]:
    """An int32 accumulator, without the bias that it will get, as narrow registers leave it."""
    total = acc + bias
    spare = 32 - accumulator.bits
    if accumulator.overflow == "wrap":
        return ((total << spare) >> spare) - bias
    top = 2 ** (accumulator.bits - 1) - 1
    return jnp.clip(total, -top - 1, top) - bias
