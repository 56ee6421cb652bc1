"""Integers: bit-exact emulation of named backends' arithmetic."""

from jqnt.integer.arithmetic import ARITHMETICS, Arithmetic, arithmetic_named
from jqnt.integer.lower import lower

__all__ = ["ARITHMETICS", "Arithmetic", "arithmetic_named", "lower"]
