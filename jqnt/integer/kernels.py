"""Which kernel computes which operator, and which operators only move codes."""

from collections.abc import Mapping

from jqnt.integer.group import Kernel
from jqnt.integer.kernel_join import ADD, CONCAT, MUL
from jqnt.integer.kernel_map import CLAMP, LOOKUP
from jqnt.integer.kernel_pool import AVERAGE_POOL, MEAN
from jqnt.integer.kernel_product import CONV, GEMM, MATMUL
from jqnt.integer.kernel_softmax import SOFTMAX

__all__ = ["KERNELS", "MOVES"]

KERNELS: Mapping[str, Kernel] = {
    "Add": ADD,
    "AveragePool": AVERAGE_POOL,
    "Clip": CLAMP,
    "Concat": CONCAT,
    "Conv": CONV,
    "Gemm": GEMM,
    "GlobalAveragePool": MEAN,
    "MatMul": MATMUL,
    "Max": CLAMP,
    "Min": CLAMP,
    "Mul": MUL,
    "ReduceMean": MEAN,
    "Relu": CLAMP,
    "Softmax": SOFTMAX,
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
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose outputs hold codes of their first input: no arithmetic, the same grid."""
