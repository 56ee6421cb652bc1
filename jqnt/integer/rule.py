"""What rules of integer arithmetic are made of: tables prepared once, applied under jit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.types import Leaf

__all__ = [
    "Container",
    "Finish",
    "Out",
    "Rule",
    "Zeros",
    "along_last",
    "container",
    "settled",
    "store",
    "true_codes",
]


class Rule(NamedTuple):
    """`prepare(numbers) -> table` in numpy, once; `apply(arrays, table, ...) -> codes` in a trace.

    A table is a dict of numpy arrays: leaves, so that other encodings run the same program.
    """

    prepare: Callable[..., dict[str, Any]]
    apply: Callable[..., Any]


class Finish(NamedTuple):
    """The rules behind an accumulator: to codes, and to float32 where the backend has that."""

    codes: Rule
    real: Rule | None = None


class Out(NamedTuple):
    """The grid that results go to: its zero point and the codes that a fused clamp leaves.

    All are true codes (not shifted), () or one per output channel.
    """

    zero_point: Leaf
    low: Leaf
    high: Leaf


class Zeros(NamedTuple):
    """The zero points of a product's input and output, and the sum of the weights per output."""

    x: int
    y: int
    sums: np.ndarray


@dataclass(frozen=True)
class Container:
    """How the codes of an integer format lie in memory: a signed type that holds code - shift.

    Signed int8 operands are several times faster than unsigned ones.
    """

    dtype: np.dtype
    shift: int


def container(fmt: Integer) -> Container:
    """int8 up to 8 bits, int16 up to 16; unsigned codes that do not fit are shifted."""
    if fmt.bits > 16:
        raise UnsupportedError(f"activations have at most 16 bits, not {fmt.bits} ({fmt.name})")
    width = 8 if fmt.bits <= 8 else 16
    shift = 2 ** (width - 1) if not fmt.signed and fmt.bits == width else 0
    return Container(np.dtype(f"int{width}"), shift)


def true_codes(x: Int[Array, "..."], encoding: Encoding) -> Int[Array, "..."]:
    """int32 codes of an array in its container."""
    assert isinstance(encoding.format, Integer)
    return x.astype(jnp.int32) + container(encoding.format).shift


def store(codes: Int[Array, "..."], encoding: Encoding) -> Int[Array, "..."]:
    """int32 codes, already inside the format's limits, in their container."""
    assert isinstance(encoding.format, Integer)
    box = container(encoding.format)
    return (codes - box.shift).astype(box.dtype)


def settled(x: Num[Array, "..."], traced: Any) -> Num[Array, "..."]:
    """x, computed once and kept in memory on the CPU.

    XLA fuses what made x into each of its readers, each tap of a window among them, and what
    made that too: a chain of residual blocks takes ten times as long. Barriers do not stop it,
    a branch does. `traced` is an integer that the compiler does not know.
    """

    def branch(x: Num[Array, "..."]) -> Num[Array, "..."]:
        return jax.lax.cond(traced > -(2**20), lambda: x, lambda: jnp.zeros_like(x))

    return jax.lax.platform_dependent(x, cpu=branch, default=lambda x: x)


def along_last(table: Any, ndim: int) -> Any:
    """Leaves of shape (n,) as (1, ..., 1, n) of `ndim` dimensions; scalars stay scalars."""

    def reshape(leaf: Num[Array, "..."]) -> Num[Array, "..."]:
        leaf = jnp.asarray(leaf)
        return leaf.reshape((1,) * (ndim - 1) + leaf.shape) if leaf.ndim == 1 else leaf

    return jax.tree.map(reshape, table)
