"""Pairs of number formats (weights, activations) in which an operator can run."""

import re
from dataclasses import dataclass

from jqnt.errors import ConfigError, nearest
from jqnt.formats import Format, Integer, format_named

__all__ = ["Pair", "pair_named", "pair_of"]

_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Pair:
    """Weights of `weight_bits` with activations of `activation_bits`; floats are named.

    `floating` is "" for integers, else the float format of the activations; integer weights with
    float activations are weight-only quantization.
    """

    weight_bits: int
    activation_bits: int
    floating: str = ""

    @property
    def name(self) -> str:
        """w8a8, w4a16, float16, w4float16, ..."""
        if not self.floating:
            return f"w{self.weight_bits}a{self.activation_bits}"
        if self.weight_bits == self.activation_bits:
            return self.floating
        return f"w{self.weight_bits}{self.floating}"

    @property
    def activation(self) -> str:
        """The activations' format: a8, a16, float16, ..."""
        return self.floating or f"a{self.activation_bits}"


def pair_named(name: str) -> Pair:
    """The pair of a name such as w8a8, w4a16, float16; ConfigError for any other."""
    if name in _FLOATS:
        bits = 32 if name == "float32" else 16
        return Pair(bits, bits, name)
    if match := re.fullmatch(r"w(\d+)(?:a(\d+)|(b?float\d+))", name):
        weight, activation, floating = match.groups()
        if floating is None:
            return Pair(int(weight), int(activation))
        if floating in _FLOATS:
            return Pair(int(weight), 32 if floating == "float32" else 16, floating)
    known = ["w8a8", "w4a8", "w8a16", "w4a16", *_FLOATS]
    raise ConfigError(f"no pair of formats {name!r}{nearest(name, known)}")


def pair_of(weight: Format | str, activation: Format | str) -> Pair:
    """The pair of two formats, given as formats or by their ONNX names ("float32" too)."""
    w_bits, _ = _bits(weight)
    a_bits, floating = _bits(activation)
    return Pair(w_bits, a_bits, floating)


def _bits(fmt: Format | str) -> tuple[int, str]:
    if fmt == "float32":
        return 32, "float32"
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    return fmt.bits, "" if isinstance(fmt, Integer) else fmt.name
