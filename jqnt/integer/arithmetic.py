"""Named integer arithmetics: small tables of rounding and requantization rules, one a backend."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jqnt.errors import ConfigError, nearest
from jqnt.graph.ir import Node
from jqnt.integer import (
    binary,
    binary_fixed,
    binary_float,
    ibert,
    mean,
    mnn,
    ncnn,
    requantize,
    requantize_fixed,
    resize,
    softmax,
    xnnpack,
)
from jqnt.integer.rule import Finish, Rule

__all__ = ["ARITHMETICS", "Arithmetic", "arithmetic_named"]

_CLAMPS: tuple[str, ...] = ("Relu", "Clip", "Min", "Max")
_FUSED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Sub",
        "Mul",
        "GlobalAveragePool",
        "AveragePool",
        "ReduceMean",
    ),
    _CLAMPS,
)


class Arithmetic(NamedTuple):
    """How a backend computes on codes.

    `requantize` finishes the accumulator of a product (Conv, Gemm, MatMul), `rescale` moves codes
    from one grid to another, `add`, `sub` and `mul` join two tensors (`wide_add` and `wide_mul`
    those of 16 bits), `mean` finishes the sum of a mean over axes, `window_mean` averages windows
    and `resize` interpolates; None where the backend has no such kernel.
    `fused` is the fusion table: the operator that computes -> the operators that may follow it
    without a code between them. `wide` says whether activations of 16 bits are possible. `dense`
    finishes Gemm and MatMul where they differ from convolutions. `real` gives the float32 of an
    accumulator whose tensor has no encoding (`dense_real` that of Gemm and MatMul),
    `enter` puts float32 onto a grid where that is not QuantizeLinear. `only_products` marks
    backends that run in float32 what they have no rule for, `zeros` those whose products take
    `Zeros`; `convolution` gives the rules of a Conv and its weight's shape where backends have
    several kernels that round differently.
    `relu_at_zero` marks backends whose Relu behind Add, Sub and Mul clamps at code 0, whatever
    the zero point; `int8_pools` those whose MaxPool compares x + 128 as int8 and whose means never
    count padding: MNN 3.6.1 on x86-64 does.
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
    layer_norm: Rule | None = None
    real: Rule | None = None
    dense_real: Rule | None = None
    enter: Rule | None = None
    only_products: bool = False
    zeros: bool = False
    convolution: Callable[[Node, tuple[int, ...]], Finish] | None = None
    relu_at_zero: bool = False
    int8_pools: bool = False
    sub: Rule | None = None
    wide_add: Rule | None = None
    wide_mul: Rule | None = None
    resize: Rule | None = None


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
        sub=binary_float.DIFFERENCE,
        wide_add=binary_float.SUM,
        wide_mul=binary_float.PRODUCT,
        resize=resize.FLOAT,
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
        sub=binary_fixed.SUB_DOUBLE,
        resize=resize.FIXED_DOUBLE,
    ),
    Arithmetic(
        "tflite-single",
        requantize_fixed.SINGLE,
        requantize_fixed.RESCALE_SINGLE,
        binary_fixed.ADD_SINGLE,
        binary_fixed.MUL_SINGLE,
        binary_fixed.MEAN_SINGLE,
        binary_fixed.POOL,
        sub=binary_fixed.SUB_SINGLE,
        resize=resize.FIXED_SINGLE,
    ),
    Arithmetic(
        "xnnpack",
        requantize.FLOAT,
        xnnpack.CONVERT,
        xnnpack.ADD,
        xnnpack.MUL,
        xnnpack.MEAN,
        binary_fixed.POOL,
        sub=xnnpack.SUB,
    ),
    Arithmetic(
        "mnn",
        mnn.CONV,
        add=mnn.ADD,
        mul=mnn.MUL,
        sub=mnn.SUB,
        mean=mnn.MEAN,
        window_mean=mnn.WINDOW_MEAN,
        relu_at_zero=True,
        int8_pools=True,
        fused={**_FUSED, "Gemm": (), "MatMul": ()},
        convolution=mnn.finish,
        enter=requantize.ENTER_AWAY,
        only_products=True,
        zeros=True,
    ),
    Arithmetic(
        "ncnn",
        ncnn.CONV,
        real=ncnn.CONV_REAL,
        dense=ncnn.DENSE,
        dense_real=ncnn.DENSE_REAL,
        convolution=ncnn.finish,
        enter=requantize.ENTER_AWAY,
        only_products=True,
    ),
    Arithmetic(
        "ncnn-avx2",
        ncnn.CONV,
        real=ncnn.CONV_REAL,
        dense=ncnn.DENSE,
        dense_real=ncnn.DENSE_REAL,
        convolution=ncnn.finish_avx2,
        enter=requantize.ENTER_AWAY,
        only_products=True,
    ),
    Arithmetic(
        "dyadic",
        requantize_fixed.DYADIC,
        requantize_fixed.RESCALE_DYADIC,
        binary_fixed.ADD_DYADIC,
        binary_fixed.MUL_DYADIC,
        softmax=ibert.SOFTMAX,
        layer_norm=ibert.LAYER_NORM,
        sub=binary_fixed.SUB_DYADIC,
    ),
    Arithmetic("power-of-two", requantize_fixed.POWER, requantize_fixed.RESCALE_POWER),
)

ARITHMETICS: Mapping[str, Arithmetic] = {entry.name: entry for entry in _ALL}
"""onnxruntime: MLAS on x86-64 with exact sums of products (without VNNI that is its option
session.x64quantprecision: else pairs of uint8 x int8 products saturate at 16 bits).
tflite-reference: the reference kernels, two roundings (fully connected layers one, as LiteRT
2.3.0 does). tflite-single: the same built with one. xnnpack: LiteRT's default on x86-64. mnn,
ncnn: their int8 layers on x86-64, all others in float32 (MNN's AVX2 and AVX-512 kernels alike;
ncnn's with AVX-512, and without its packed layout, whose depthwise layers take the processor's
approximate reciprocal). ncnn-avx2: ncnn on processors without AVX-512, whose depthwise kernels
add the bias in an instruction of its own. dyadic: HAWQ-V3, with the Softmax and LayerNorm of
I-BERT. power-of-two: shifts only."""


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic of that name; ConfigError with the nearest names for any other."""
    if name not in ARITHMETICS:
        raise ConfigError(f"no arithmetic {name!r}{nearest(name, ARITHMETICS)}")
    return ARITHMETICS[name]
