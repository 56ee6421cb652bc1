"""Integers: bit-exact emulation of named backends' arithmetic."""

from jqnt.integer.arithmetic import ARITHMETICS, Arithmetic, arithmetic_named
from jqnt.integer.bounds import Bound, bounds
from jqnt.integer.family import Family
from jqnt.integer.lower import lower
from jqnt.integer.narrow import Accumulator
from jqnt.integer.through import through

__all__ = [
    "ARITHMETICS",
    "Accumulator",
    "Arithmetic",
    "Bound",
    "Family",
    "arithmetic_named",
    "bounds",
    "lower",
    "through",
]
