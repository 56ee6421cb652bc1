"""Which kernel computes which operator, and which operators only move codes."""

from collections.abc import Mapping

from jqnt.integer.group import Kernel
from jqnt.integer.kernel_join import ADD, CONCAT, MUL, SUB
from jqnt.integer.kernel_map import CLAMP, LOOKUP
from jqnt.integer.kernel_matmul import MATMUL
from jqnt.integer.kernel_norm import LAYER_NORM
from jqnt.integer.kernel_pool import AVERAGE_POOL, MEAN
from jqnt.integer.kernel_product import CONV, GEMM
from jqnt.integer.kernel_resize import RESIZE
from jqnt.integer.kernel_softmax import SOFTMAX
from jqnt.integer.kernel_transposed import CONV_TRANSPOSE

__all__ = ["KERNELS", "MOVES", "PRODUCTS"]

KERNELS: Mapping[str, Kernel] = {
    "Add": ADD,
    "AveragePool": AVERAGE_POOL,
    "Clip": CLAMP,
    "Concat": CONCAT,
    "Conv": CONV,
    "ConvTranspose": CONV_TRANSPOSE,
    "Gemm": GEMM,
    "GlobalAveragePool": MEAN,
    "LayerNormalization": LAYER_NORM,
    "MatMul": MATMUL,
    "Max": CLAMP,
    "Min": CLAMP,
    "Mul": MUL,
    "ReduceMean": MEAN,
    "Relu": CLAMP,
    "Resize": RESIZE,
    "Softmax": SOFTMAX,
    "Sub": SUB,
    **dict.fromkeys(
        (
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Mish",
            "Selu",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "Tanh",
        ),
        LOOKUP,
    ),
}
"""Operator -> the kernel of the groups that it heads."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose kernels finish an accumulator."""

MOVES = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose outputs hold codes of their first input: no arithmetic, the same grid (Resize
where it takes the nearest pixel)."""
