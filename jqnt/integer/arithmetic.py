"""Named integer arithmetics: small tables of rounding and requantization rules, one a backend."""

from collections.abc import Mapping
from typing import NamedTuple

from jqnt.errors import ConfigError, nearest
from jqnt.integer import binary, binary_fixed, mean, requantize, requantize_fixed, softmax, xnnpack
from jqnt.integer.rule import Rule

__all__ = ["ARITHMETICS", "Arithmetic", "arithmetic_named"]

_CLAMPS: tuple[str, ...] = ("Relu", "Clip", "Min", "Max")
_FUSED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "ReduceMean"),
    _CLAMPS,
)


class Arithmetic(NamedTuple):
    """How a backend computes on codes.

    `requantize` finishes the accumulator of a product (Conv, Gemm, MatMul), `rescale` moves codes
    from one grid to another, `add` and `mul` join two tensors, `mean` finishes the sum of a
    global pool and `window_mean` averages windows; None where the backend has no such kernel.
    `fused` is the fusion table: the operator that computes -> the operators that may follow it
    without a code between them. `wide` says whether activations of 16 bits are possible. `dense`
    finishes Gemm and MatMul where they differ from convolutions.
    """

    name: str
    requantize: Rule
    rescale: Rule | None = None
    add: Rule | None = None
    mul: Rule | None = None
    mean: Rule | None = None
    window_mean: Rule | None = None
    fused: Mapping[str, tuple[str, ...]] = _FUSED
    wide: bool = False
    dense: Rule | None = None
    softmax: Rule | None = None


_ALL = (
    Arithmetic(
        "onnxruntime",
        requantize.FLOAT,
        requantize.DIVIDE,
        binary.FUSED_ADD,
        binary.FLOAT_MUL,
        mean.FLOAT,
        mean.FLOAT_WINDOW,
        wide=True,
        softmax=softmax.TABLE,
    ),
    Arithmetic(
        "tflite-reference",
        requantize_fixed.DOUBLE,
        requantize_fixed.RESCALE_DOUBLE,
        binary_fixed.ADD_DOUBLE,
        binary_fixed.MUL_DOUBLE,
        binary_fixed.MEAN_DOUBLE,
        binary_fixed.POOL,
        dense=requantize_fixed.SINGLE,
        softmax=softmax.FIXED,
    ),
    Arithmetic(
        "tflite-single",
        requantize_fixed.SINGLE,
        requantize_fixed.RESCALE_SINGLE,
        binary_fixed.ADD_SINGLE,
        binary_fixed.MUL_SINGLE,
        binary_fixed.MEAN_SINGLE,
        binary_fixed.POOL,
    ),
    Arithmetic(
        "xnnpack",
        requantize.FLOAT,
        xnnpack.CONVERT,
        xnnpack.ADD,
        xnnpack.MUL,
        mean.FLOAT,
        binary_fixed.POOL,
    ),
    Arithmetic("mnn", requantize.MNN),
    Arithmetic("ncnn", requantize.NCNN),
    Arithmetic(
        "dyadic",
        requantize_fixed.DYADIC,
        requantize_fixed.RESCALE_DYADIC,
        binary_fixed.ADD_DYADIC,
        binary_fixed.MUL_DYADIC,
    ),
    Arithmetic("power-of-two", requantize_fixed.POWER, requantize_fixed.RESCALE_POWER),
)

ARITHMETICS: Mapping[str, Arithmetic] = {entry.name: entry for entry in _ALL}
"""onnxruntime: MLAS on x86-64 with AVX2 or newer. tflite-reference: the reference kernels, two
roundings (fully connected layers one, as LiteRT 2.3.0 does). tflite-single: the same built with
one. xnnpack: LiteRT's default on x86-64. mnn, ncnn: their int8 layers on x86-64. dyadic:
HAWQ-V3. power-of-two: shifts only."""


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic of that name; ConfigError with the nearest names for any other."""
    if name not in ARITHMETICS:
        raise ConfigError(f"no arithmetic {name!r}{nearest(name, ARITHMETICS)}")
    return ARITHMETICS[name]
