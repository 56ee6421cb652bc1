"""Number formats (integers, minifloats) and granularity: what is static about a quantizer."""

import re
from dataclasses import dataclass

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float

from jqnt.errors import ConfigError, nearest

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "PER_TENSOR",
    "Format",
    "Granularity",
    "Integer",
    "Minifloat",
    "format_named",
    "integer_limits",
    "storage_dtype",
]


@dataclass(frozen=True)
class Integer:
    """A grid of 2^bits integers; `strict` drops the most negative one of a signed grid.

    q in [-2^(bits-1), 2^(bits-1) - 1] if signed, [0, 2^bits - 1] if not. A strict signed grid is
    [-(2^(bits-1) - 1), 2^(bits-1) - 1], and {-1, +1} at one bit.
    """

    bits: int = 8
    signed: bool = False
    strict: bool = False

    def __post_init__(self):
        if not 1 <= self.bits <= 32:
            raise ConfigError(f"an integer format has 1 to 32 bits, not {self.bits}")
        if self.strict and not self.signed:
            raise ConfigError("a strict grid drops the most negative code, so it must be signed")

    @property
    def name(self) -> str:
        """The ONNX-like name: int8, uint4, ..."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code, exact."""
        return integer_limits(self.bits, self.signed, self.strict)


@dataclass(frozen=True)
class Minifloat:
    """A float of 1 sign bit, `exponent` and `mantissa` bits, saturating, with subnormals.

    `ieee` reserves the top exponent for infinities and NaN (as float16 does); without it the
    top exponent holds numbers, and `nan` takes its last code (e4m3fn) or not (fp6, fp4).
    Largest value by the OCP specifications: FP8 (OFP8 rev 1.0), MX (rev 1.0, section 5.3).
    """

    exponent: int
    mantissa: int
    ieee: bool = True
    nan: bool = True

    def __post_init__(self):
        if not (1 <= self.exponent <= 8 and 0 <= self.mantissa <= 23):
            raise ConfigError(
                f"a minifloat has 1 to 8 exponent bits and 0 to 23 mantissa bits, not "
                f"{self.exponent} and {self.mantissa}"
            )

    @property
    def bits(self) -> int:
        """Storage width, the sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def name(self) -> str:
        """float16, bfloat16, float8_e4m3fn, float6_e3m2fn, ..."""
        if self == FP16:
            return "float16"
        if self == BF16:
            return "bfloat16"
        if self == FP32:
            return "float32"
        suffix = "" if self.ieee else "fn"
        return f"float{self.bits}_e{self.exponent}m{self.mantissa}{suffix}"

    @property
    def bias(self) -> int:
        """The exponent bias, 2^(exponent-1) - 1."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def max(self) -> float:
        """The largest finite value."""
        top = 2**self.exponent - 1 - self.bias - (1 if self.ieee else 0)
        step = 2.0**-self.mantissa
        fraction = 2 - step * (2 if not self.ieee and self.nan and self.mantissa else 1)
        return fraction * 2.0**top


Format = Integer | Minifloat

FP16 = Minifloat(5, 10)
BF16 = Minifloat(8, 7)
FP32 = Minifloat(8, 23)
"""What is not quantized."""

_NAMED: dict[str, Format] = {
    "float16": FP16,
    "bfloat16": BF16,
    "float32": FP32,
    "float8_e4m3fn": Minifloat(4, 3, ieee=False),
    "float8_e5m2": Minifloat(5, 2),
    "float6_e2m3fn": Minifloat(2, 3, ieee=False, nan=False),
    "float6_e3m2fn": Minifloat(3, 2, ieee=False, nan=False),
    "float4_e2m1fn": Minifloat(2, 1, ieee=False, nan=False),
}


def format_named(name: str) -> Format:
    """The format of a name such as int4, uint8, float16, bfloat16, float8_e4m3fn.

    Raises ConfigError, with the nearest names, for any other.
    """
    if name in _NAMED:
        return _NAMED[name]
    if match := re.fullmatch(r"(u?)int([1-9]\d?)", name):
        return Integer(int(match[2]), signed=not match[1])
    known = [*_NAMED, "int4", "int8", "int16", "uint4", "uint8", "uint16"]
    raise ConfigError(f"no number format {name!r}{nearest(name, known)}")


def integer_limits(bits: int, signed: bool, strict: bool = False) -> tuple[int, int]:
    """The limits of an integer grid in exact Python integers."""
    if not signed:
        return 0, 2**bits - 1
    top = 2 ** (bits - 1) - 1
    return (-max(top, 1), max(top, 1)) if strict else (-top - 1, top)


def storage_dtype(fmt: Format) -> np.dtype:
    """The numpy type that holds the codes: ml_dtypes' 2 and 4 bit types, else the next of 8 to 32.

    Minifloats outside numpy and ml_dtypes raise ConfigError.
    """
    if isinstance(fmt, Minifloat):
        try:
            return np.dtype(getattr(ml_dtypes, fmt.name, None) or fmt.name)
        except TypeError:
            raise ConfigError(f"no storage type for {fmt.name}") from None
    if fmt.bits in (2, 4):
        return np.dtype(getattr(ml_dtypes, fmt.name))
    width = next(w for w in (8, 16, 32) if fmt.bits <= w)
    return np.dtype(f"{'int' if fmt.signed else 'uint'}{width}")


@dataclass(frozen=True)
class Granularity:
    """How many scales a tensor has: one, one per index of `axis`, or one per `block` along `axis`.

    The scale's shape is (), (n,), or the tensor's with `axis` divided by `block` (rounded up).
    """

    axis: int | None = None
    block: int | None = None

    def __post_init__(self):
        if self.block is not None and (self.axis is None or self.block < 1):
            raise ConfigError("a block size is positive and needs an axis")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scale of a tensor of `shape`."""
        if self.axis is None:
            return ()
        axis = self.axis % len(shape)
        if self.block is None:
            return (shape[axis],)
        return (*shape[:axis], -(-shape[axis] // self.block), *shape[axis + 1 :])

    def groups(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` with the values that share a scale along a new last axis: scale_shape + (n,).

        A block that is cut short at the end is filled up with zeros.
        """
        if self.axis is None:
            return x.reshape(-1)
        axis = self.axis % x.ndim
        if self.block is None:
            return jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        blocks = -(-x.shape[axis] // self.block)
        missing = blocks * self.block - x.shape[axis]
        x = jnp.pad(x, [(0, missing if d == axis else 0) for d in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], blocks, self.block, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, -1)

    def expand(self, scale: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """`scale` in a shape that broadcasts against a tensor of `shape`."""
        scale = jnp.asarray(scale)
        if self.axis is None or scale.ndim == 0:
            return scale
        axis = self.axis % len(shape)
        if self.block is not None:
            return jnp.repeat(scale, self.block, axis)[
                tuple(slice(shape[axis]) if d == axis else slice(None) for d in range(len(shape)))
            ]
        return scale.reshape([-1 if d == axis else 1 for d in range(len(shape))])


PER_TENSOR = Granularity()
