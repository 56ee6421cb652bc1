"""Number formats (integers, minifloats, microscaled blocks): what is static about a quantizer."""

import re
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jqnt.errors import ConfigError, nearest
from jqnt.granularity import PER_TENSOR, Granularity

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "PER_TENSOR",
    "Format",
    "Granularity",
    "Integer",
    "Microscaling",
    "Minifloat",
    "format_named",
    "integer_limits",
    "storage_dtype",
]


@dataclass(frozen=True)
class Integer:
    """A grid of 2^bits integers; `strict` drops the most negative one of a signed grid.

    q in [-2^(bits-1), 2^(bits-1) - 1] if signed, [0, 2^bits - 1] if not. A strict signed grid is
    [-(2^(bits-1) - 1), 2^(bits-1) - 1]. A signed grid of one bit is always strict: {-1, +1}. A
    `shifted` signed grid stands half a step above its codes, so that it is even about zero: int2
    is {-3, -1, 1, 3} / 2.
    """

    bits: int = 8
    signed: bool = False
    strict: bool = False
    shifted: bool = False

    def __post_init__(self):
        if not 1 <= self.bits <= 32:
            raise ConfigError(f"an integer format has 1 to 32 bits, not {self.bits}")
        if self.strict and not self.signed:
            raise ConfigError("a strict grid drops the most negative code, so it must be signed")
        if self.shifted and (self.strict or not self.signed):
            raise ConfigError("a shifted grid is even about zero: signed, with all of its codes")
        if self.bits == 1 and self.signed and not self.shifted:
            object.__setattr__(self, "strict", True)

    @property
    def name(self) -> str:
        """The ONNX-like name: int8, uint4, ..., int2_shifted."""
        return f"{'int' if self.signed else 'uint'}{self.bits}{'_shifted' * self.shifted}"

    @property
    def even(self) -> bool:
        """Whether its values are alike on both sides of zero, wherever the range lies."""
        return self.shifted or (self.signed and self.bits == 1)

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
    def scaled(self) -> bool:
        """Whether it is narrow enough to need a scale: under 16 bits, as all back ends have it."""
        return self.bits < 16

    @property
    def max(self) -> float:
        """The largest finite value."""
        top = 2**self.exponent - 1 - self.bias - (1 if self.ieee else 0)
        step = 2.0**-self.mantissa
        fraction = 2 - step * (2 if not self.ieee and self.nan and self.mantissa else 1)
        return fraction * 2.0**top


@dataclass(frozen=True)
class Microscaling:
    """Blocks of `block` elements that share a scale which follows from their own values.

    Without `scale` the scale is a power of two (E8M0): 2^(floor(log2 max|x|) - emax), emax being
    the exponent of the element's largest number; integer elements are fractions, code / 2^(bits-2)
    (OCP Microscaling Formats MX 1.0, sections 5 and 6.3). With a minifloat `scale` it is
    cast(max|x| / (element.max * s)) * s, with one float32 s for the whole tensor (NVFP4).
    """

    element: Integer | Minifloat
    block: int = 32
    scale: Minifloat | None = None

    def __post_init__(self):
        signed = isinstance(self.element, Minifloat) or (
            self.element.signed and not self.element.shifted and self.element.bits >= 2
        )
        if self.block < 1 or not signed:
            raise ConfigError(
                "a microscaled block has one or more signed elements of 2 bits or more"
            )

    @property
    def bits(self) -> int:
        """Storage width of an element, its share of the scale left out."""
        return self.element.bits

    @property
    def name(self) -> str:
        """mxint8, mxfp8_e4m3, mxfp4_e2m1, nvfp4, ... where a specification names it."""
        for name, known in _MICROSCALED.items():
            if known == self:
                return name
        scale = "e8m0" if self.scale is None else self.scale.name
        return f"{self.element.name} in {self.block}s of {scale}"


Format = Integer | Minifloat | Microscaling

FP16 = Minifloat(5, 10)
BF16 = Minifloat(8, 7)
FP32 = Minifloat(8, 23)
"""What is not quantized."""

_MINIFLOATS: dict[str, Minifloat] = {
    "float16": FP16,
    "bfloat16": BF16,
    "float32": FP32,
    "float8_e4m3fn": Minifloat(4, 3, ieee=False),
    "float8_e5m2": Minifloat(5, 2),
    "float6_e2m3fn": Minifloat(2, 3, ieee=False, nan=False),
    "float6_e3m2fn": Minifloat(3, 2, ieee=False, nan=False),
    "float4_e2m1fn": Minifloat(2, 1, ieee=False, nan=False),
}

_MICROSCALED: dict[str, Microscaling] = {
    "mxint8": Microscaling(Integer(8, signed=True)),
    "mxfp8_e4m3": Microscaling(_MINIFLOATS["float8_e4m3fn"]),
    "mxfp8_e5m2": Microscaling(_MINIFLOATS["float8_e5m2"]),
    "mxfp6_e2m3": Microscaling(_MINIFLOATS["float6_e2m3fn"]),
    "mxfp6_e3m2": Microscaling(_MINIFLOATS["float6_e3m2fn"]),
    "mxfp4_e2m1": Microscaling(_MINIFLOATS["float4_e2m1fn"]),
    "nvfp4": Microscaling(
        _MINIFLOATS["float4_e2m1fn"], block=16, scale=_MINIFLOATS["float8_e4m3fn"]
    ),
}


def format_named(name: str) -> Format:
    """The format of a name: int4, uint8, int2_shifted, float16, float8_e4m3fn, float7_e3m3,
    mxfp4_e2m1, nvfp4, ...

    floatN_eEmM is any minifloat, with infinities as IEEE 754 has them; with "fn" its top
    exponent holds numbers. Raises ConfigError, with the nearest names, for any other.
    """
    if name in _MINIFLOATS:
        return _MINIFLOATS[name]
    if name in _MICROSCALED:
        return _MICROSCALED[name]
    if match := re.fullmatch(r"(u?)int([1-9]\d?)(_shifted)?", name):
        return Integer(int(match[2]), signed=not match[1], shifted=bool(match[3]))
    if match := re.fullmatch(r"float(\d+)_e(\d+)m(\d+)(fn)?", name):
        fmt = Minifloat(int(match[2]), int(match[3]), ieee=not match[4])
        if fmt.bits != int(match[1]):
            raise ConfigError(f"{name!r} has {fmt.bits} bits, its sign included, not {match[1]}")
        return fmt
    known = [*_MINIFLOATS, *_MICROSCALED, "int4", "int8", "int16", "uint4", "uint8", "uint16"]
    raise ConfigError(f"no number format {name!r}{nearest(name, known)}")


def integer_limits(bits: int, signed: bool, strict: bool = False) -> tuple[int, int]:
    """The limits of an integer grid in exact Python integers."""
    if not signed:
        return 0, 2**bits - 1
    top = 2 ** (bits - 1) - 1
    return (-max(top, 1), max(top, 1)) if strict else (-top - 1, top)


def storage_dtype(fmt: Format) -> np.dtype:
    """The numpy type that holds the codes: ml_dtypes' 2 and 4 bit types, else the next of 8 to 32.

    Minifloats outside numpy and ml_dtypes raise ConfigError; microscaled blocks are stored as
    their elements.
    """
    if isinstance(fmt, Microscaling):
        return storage_dtype(fmt.element)
    if isinstance(fmt, Minifloat):
        try:
            return np.dtype(getattr(ml_dtypes, fmt.name, None) or fmt.name)
        except TypeError:
            raise ConfigError(f"no storage type for {fmt.name}") from None
    if fmt.bits in (2, 4):
        return np.dtype(getattr(ml_dtypes, f"{'' if fmt.signed else 'u'}int{fmt.bits}"))
    width = next(w for w in (8, 16, 32) if fmt.bits <= w)
    return np.dtype(f"{'int' if fmt.signed else 'uint'}{width}")
