"""The operator names of ONNX by what they mean to an NPU: layout, kind of work, fusion."""

__all__ = [
    "AFFINE",
    "CHANNEL_FIRST",
    "CHANNEL_LAST",
    "CHEAP",
    "CONVOLUTIONS",
    "LOOKUPS",
    "MOVES",
    "NORMALIZATIONS",
    "PRODUCTS",
    "RECURRENT",
    "REDUCTIONS",
    "RESHAPES",
    "SOFTMAXES",
    "UNARY",
    "VIEWS",
    "WINDOWS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONVOLUTIONS = _words("Conv ConvInteger ConvTranspose QLinearConv")
PRODUCTS = _words("Gemm MatMul MatMulInteger QLinearMatMul")
RECURRENT = _words("GRU LSTM RNN")
WINDOWS = _words("AveragePool LpPool MaxPool")
REDUCTIONS = _words(
    "ArgMax ArgMin CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare TopK"
)
SOFTMAXES = _words("Hardmax LogSoftmax Softmax")
NORMALIZATIONS = _words(
    "GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization "
    "MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization"
)
LOOKUPS = _words(
    "Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish Log "
    "Mish Pow Reciprocal Selu Sigmoid Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu"
)
MOVES = _words(
    "Concat DepthToSpace Expand Gather GatherElements GatherND Pad Resize ScatterElements "
    "ScatterND Slice SpaceToDepth Split Tile Upsample"
)
RESHAPES = _words("Flatten Reshape Squeeze Unsqueeze")
VIEWS = _words("Cast CastLike DequantizeLinear Dropout Identity QuantizeLinear")

CHANNEL_FIRST = (
    CONVOLUTIONS
    | WINDOWS
    | _words(
        "BatchNormalization DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization InstanceNormalization LRN MaxRoiPool Resize RoiAlign SpaceToDepth "
        "Upsample"
    )
)
"""Operators that say where the channels are: on axis 1."""

CHANNEL_LAST = (
    PRODUCTS
    | RECURRENT
    | _words("Attention LayerNormalization MultiHeadAttention RMSNormalization")
)
"""Operators whose channels are on the last axis."""

CHEAP = _words("Abs Clip LeakyRelu Max Min Neg PRelu Relu")
"""Functions of one variable that take an arithmetic instruction or two."""

UNARY = LOOKUPS | CHEAP | _words("Add Ceil Div Floor Mul Round Sign Sub")
"""Operators that can belong to a function of one variable, the others being scalars."""

AFFINE = _words("Add BatchNormalization Div Mul Sub")
"""Operators that fold into a product before them where their other operand is constant."""
