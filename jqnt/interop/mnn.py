"""MNN's compression parameters, which its converter reads with --compressionParamsFile, and back.

tools/converter/source/compression/MNN_compression.proto of https://github.com/alibaba/MNN, as JSON;
the name must end in ".json". The converter quantizes the weights of the ONNX file itself, so
`to_mnn` gives a model whose weights are on the grid already.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError, nearest
from jqnt.formats import PER_TENSOR, Granularity, Integer
from jqnt.graph.ir import Graph, Node
from jqnt.integer.arithmetic import arithmetic_named
from jqnt.integer.group import Group, per_tensor
from jqnt.integer.operands import Operands
from jqnt.integer.partition import partition
from jqnt.interop.to_onnx import to_onnx

__all__ = ["from_mnn", "to_mnn"]

_VERSION = "3.6.1"
_BEFORE_OUTPUT = "__before_tr"
"""What the converter appends to the output of a convolution that feeds an output of the model."""
_FROM_PRODUCT = "__matmul_converted"
"""What it appends to the output of a matrix product that it turns into a convolution."""
_WRITTEN = ("Conv", "Gemm", "MatMul")


def to_mnn(
    graph: Graph,
    params: Mapping[str, Any],
    encodings: Encodings,
    *,
    names: Mapping[str, str] | None = None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """(float model with weights on their grids, compression parameters) for MNNConvert.

    A layer is matched by the name that its output has after conversion, which is the tensor's
    own, with the suffix `__before_tr` where a convolution makes an output of the graph, and
    `__matmul_converted` where Gemm or MatMul makes it; `names` says otherwise. Convolutions and
    products with an int8 input, weight and output are quantized; sums, products and pools between
    int8 tensors follow them, all else is float.

    Raises UnsupportedError, naming the node, for grids that MNN's int8 convolutions do not take,
    and where no convolution has its input, weight and output encoded.
    """
    operands = Operands(graph, params, encodings)
    site, steps = partition(operands, arithmetic_named("mnn"))
    layers = []
    baked = {k: np.asarray(v) for k, v in params.items()}
    for step in steps:
        if not isinstance(step, Group) or step.head.op not in _WRITTEN:
            continue
        node, where = step.head, site.where(step)
        data, weight = node.inputs[:2]
        coded = operands.coded(weight)
        if coded is None or not _plain(node):
            raise UnsupportedError(f"{where}: MNN's int8 products take one activation, as it is")
        if weight in baked:
            baked[weight] = operands.value(weight).astype(baked[weight].dtype)
        label = step.output
        if node.op != "Conv":
            label += _FROM_PRODUCT
        elif label in graph.outputs:
            label += _BEFORE_OUTPUT
        label = (names or {}).get(step.output, label)
        bits, low, high = _weight_limits(coded.format, where)
        axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
        scales = coded.per_channel(axis, where)
        layers.append(
            {
                "opName": step.output,
                "input": [_activation(data, data, site.grids[data])],
                "weight": [
                    {
                        "name": weight,
                        "bits": bits,
                        "scales": [float(s) for s in scales],
                        "clampMin": low,
                        "clampMax": high,
                    }
                ],
                "output": [_activation(step.output, label, site.grids[step.output])],
                "method": "QAT",
            }
        )
    if not layers:
        raise UnsupportedError(
            f"graph {graph.name!r} has no convolution or product with input, weight and "
            f"output in int8; plan with target 'mnn'"
        )
    parameters = {"roundMode": "ROUND_AWAY_FROM_ZERO", "layer": layers}
    document = {
        "version": _VERSION,
        "algo": [{"type": "QUANTIZE", "quantParams": parameters}],
    }
    return to_onnx(graph, baked), document


def from_mnn(document: Mapping[str, Any], graph: Graph) -> Encodings:
    """The encodings of a compression file that `json.loads` read.

    Raises DataError, naming the key, for a malformed document, tensors that the graph does not
    have, and files that only guide weight compression (forGuide).
    """
    if document.get("forGuide"):
        raise DataError("MNN compression: forGuide is true: no activation scales are in this file")
    found: dict[str, Encoding] = {}
    known = set(graph.tensors)
    for i, algo in enumerate(_items(document, "algo", "MNN compression")):
        if algo.get("type", "QUANTIZE") != "QUANTIZE":
            continue
        at = f"MNN compression, algo[{i}].quantParams"
        parameters = algo.get("quantParams")
        if not isinstance(parameters, Mapping):
            raise DataError(f"{at} is no object")
        for j, layer in enumerate(_items(parameters, "layer", at)):
            for key in ("input", "weight", "output"):
                for entry in _items(layer, key, f"{at}.layer[{j}]"):
                    where = f"{at}.layer[{j}].{key}"
                    name = str(entry.get("name", ""))
                    name = name.removesuffix(_BEFORE_OUTPUT).removesuffix(_FROM_PRODUCT)
                    if name not in known:
                        raise DataError(f"{where}: no tensor {name!r}{nearest(name, known)}")
                    found[name] = _read(entry, key == "weight", where)
    return Encodings(found)


def _plain(node: Node) -> bool:
    """Whether the converter makes a convolution of a product."""
    return not node.attrs.get("transA", 0) and {1.0} == {
        float(node.attrs.get(key, 1.0)) for key in ("alpha", "beta")
    }


def _activation(tensor: str, label: str, encoding: Encoding) -> dict[str, Any]:
    scale, zero_point = per_tensor(encoding, f"tensor {tensor!r}")
    fmt = encoding.format
    if not isinstance(fmt, Integer) or not fmt.signed or fmt.bits != 8:
        raise UnsupportedError(f"tensor {tensor!r}: MNN's activations are int8, not {fmt.name}")
    return {
        "name": label,
        "bits": 8,
        "scales": [float(scale)],
        "zeroPoint": zero_point,
        "clampMin": fmt.limits[0],
        "clampMax": fmt.limits[1],
    }


def _weight_limits(fmt: Integer, where: str) -> tuple[int, int, int]:
    if not fmt.signed or fmt.bits > 8:
        raise UnsupportedError(f"{where}: MNN's weights are signed, of 8 bits at the most")
    return fmt.bits, *fmt.limits


def _items(table: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    entries = table.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise DataError(f"{where}: key {key!r} must hold a list of objects")
    return entries


def _read(entry: Mapping[str, Any], weight: bool, where: str) -> Encoding:
    try:
        bits = int(entry.get("bits", 8))
        scale = np.asarray(entry["scales"], np.float32)
        zero_point = np.full(scale.shape, int(entry.get("zeroPoint", 0)), np.int64)
        low = int(entry.get("clampMin", -(2 ** (bits - 1))))
        fmt = Integer(bits, signed=True, strict=low > -(2 ** (bits - 1)))
    except KeyError as error:
        raise DataError(f"{where}: no key {error}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from None
    if scale.ndim != 1 or not scale.size or (scale.size > 1 and not weight):
        raise DataError(f"{where}: key 'scales' must be a list of one number per output channel")
    try:
        if weight:
            return Encoding(fmt, scale, zero_point, Granularity(0))
        return Encoding(fmt, scale.reshape(()), zero_point.reshape(()), PER_TENSOR)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
