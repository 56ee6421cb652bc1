"""Named integer arithmetics: small tables of rounding and requantization rules, one a backend."""

from collections.abc import Mapping
from typing import NamedTuple

from jqnt.errors import ConfigError, nearest
from jqnt.integer import binary, mean, requantize
from jqnt.integer.rule import Rule

__all__ = ["ARITHMETICS", "Arithmetic", "arithmetic_named"]

_CLAMPS = ("Relu", "Clip", "Min", "Max")


class Arithmetic(NamedTuple):
    """How a backend computes on codes.

    `requantize` finishes the accumulator of a product (Conv, Gemm, MatMul), `rescale` moves codes
    from one grid to another, `add` and `mul` join two tensors, `mean` finishes the sum of a
    global pool and `window_mean` averages windows; None where the backend has no such kernel.
    `fused` is the fusion table: the operator that computes -> the operators that may follow it
    without a code between them.
    """

    name: str
    requantize: Rule
    rescale: Rule
    add: Rule | None
    mul: Rule | None
    mean: Rule | None
    window_mean: Rule | None
    fused: Mapping[str, tuple[str, ...]]


ARITHMETICS: Mapping[str, Arithmetic] = {
    "onnxruntime": Arithmetic(
        name="onnxruntime",
        requantize=requantize.FLOAT,
        rescale=requantize.DIVIDE,
        add=binary.FUSED_ADD,
        mul=binary.FLOAT_MUL,
        mean=mean.FLOAT,
        window_mean=mean.FLOAT_WINDOW,
        fused={
            "Conv": _CLAMPS,
            "Gemm": _CLAMPS,
            "MatMul": _CLAMPS,
            "Add": _CLAMPS,
            "Mul": _CLAMPS,
            "GlobalAveragePool": _CLAMPS,
            "AveragePool": _CLAMPS,
            "ReduceMean": _CLAMPS,
        },
    ),
}
"""onnxruntime: the MLAS kernels on x86-64 with AVX2 or newer."""


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic of that name; ConfigError with the nearest names for any other."""
    if name not in ARITHMETICS:
        raise ConfigError(f"no arithmetic {name!r}{nearest(name, ARITHMETICS)}")
    return ARITHMETICS[name]
