"""ONNX's tensors and attributes -> numpy and Python, with every claim of the file checked."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from jqnt.errors import ModelError, UnsupportedError
from jqnt.graph.ir import TensorInfo

__all__ = ["dtype_of", "info_of", "read_attribute", "read_tensor"]

_HALF_BYTE = {
    getattr(TensorProto, name)
    for name in ("UINT4", "INT4", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
}
_QUARTER_BYTE = {
    getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name)
}
_LARGEST = 2**40
"""Bytes; no tensor of a real model is larger."""

_FIELDS: Mapping[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
}


def dtype_of(element: int, where: str) -> np.dtype:
    """The numpy type of an ONNX element type; UnsupportedError for strings and unknown ones."""
    if element == TensorProto.STRING:
        raise UnsupportedError(f"{where} holds strings, which have no arithmetic")
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{where} has the unknown element type {element}") from None


def info_of(proto: onnx.ValueInfoProto) -> TensorInfo | None:
    """Type and shape as the file declares them; None where it declares no tensor."""
    if not proto.type.HasField("tensor_type") or not proto.type.tensor_type.elem_type:
        return None
    tensor = proto.type.tensor_type
    if tensor.elem_type == TensorProto.STRING:
        return None
    dtype = dtype_of(tensor.elem_type, f"tensor {proto.name!r}")
    if not tensor.HasField("shape"):
        return TensorInfo(dtype, None)
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return TensorInfo(dtype, tuple(dims))


def read_tensor(proto: TensorProto, folder: Path | None, where: str) -> np.ndarray:
    """The values of a TensorProto; `folder` is where external data may lie.

    Raises ModelError where the bytes do not fit the shape, or external data is missing, too
    short or outside `folder`.
    """
    dtype = dtype_of(proto.data_type, where)
    dims = tuple(proto.dims)
    if any(d < 0 for d in dims):
        raise ModelError(f"{where} has a negative dimension: {list(dims)}")
    count = math.prod(dims)
    expected = _storage_bytes(proto.data_type, dtype, count)
    if expected > _LARGEST:
        raise ModelError(f"{where} claims {expected} bytes: {list(dims)}")
    if proto.HasField("segment"):
        raise UnsupportedError(f"{where} is stored in segments; save it in one piece")
    if proto.data_location == TensorProto.EXTERNAL:
        raw = _external(proto, folder, expected, where)
        inner = TensorProto()
        inner.CopyFrom(proto)
        inner.ClearField("external_data")
        inner.data_location = TensorProto.DEFAULT
        inner.raw_data = raw
        return numpy_helper.to_array(inner)
    if proto.HasField("raw_data"):
        found, unit = len(proto.raw_data), "bytes"
    else:
        name, per_value = _FIELDS.get(proto.data_type, ("int32_data", 1))
        found, unit = len(getattr(proto, name)), "values"
        if name == "int32_data":
            expected = _packed_values(proto.data_type, count)
        else:
            expected = count * per_value
    if found != expected:
        raise ModelError(
            f"{where} of shape {list(dims)} and type {dtype} needs {expected} {unit}, "
            f"the file holds {found}"
        )
    try:
        return numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{where} cannot be read: {error}") from None


def read_attribute(proto: AttributeProto, folder: Path | None, where: str) -> Any:
    """A Python number, string, tuple of them, or numpy array; bodies are not read here."""
    kind = proto.type
    if kind == AttributeProto.FLOAT:
        return proto.f
    if kind == AttributeProto.INT:
        return proto.i
    if kind == AttributeProto.STRING:
        return _text(proto.s, where)
    if kind == AttributeProto.TENSOR:
        return read_tensor(proto.t, folder, where)
    if kind == AttributeProto.SPARSE_TENSOR:
        return _dense(proto.sparse_tensor, folder, where)
    if kind == AttributeProto.FLOATS:
        return tuple(proto.floats)
    if kind == AttributeProto.INTS:
        return tuple(proto.ints)
    if kind == AttributeProto.STRINGS:
        return tuple(_text(s, where) for s in proto.strings)
    if kind == AttributeProto.TENSORS:
        return tuple(read_tensor(t, folder, where) for t in proto.tensors)
    known = AttributeProto.AttributeType.items()
    name = next((n for n, value in known if value == kind), str(kind))
    raise UnsupportedError(f"{where} is of kind {name}, which no supported operator takes")


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ModelError(f"{where} is no UTF-8 text") from None


def _storage_bytes(element: int, dtype: np.dtype, count: int) -> int:
    if element in _HALF_BYTE:
        return (count + 1) // 2
    if element in _QUARTER_BYTE:
        return (count + 3) // 4
    return count * dtype.itemsize


def _packed_values(element: int, count: int) -> int:
    """int32_data holds one value per entry, or one byte of packed values per entry."""
    per_entry = 2 if element in _HALF_BYTE else 4 if element in _QUARTER_BYTE else 1
    return (count + per_entry - 1) // per_entry


def _external(proto: TensorProto, folder: Path | None, expected: int, where: str) -> bytes:
    entries: Mapping[str, str] = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"{where} lies in the external file {location!r}; import the model by its path"
        )
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{where} points outside the model's folder: {location!r}")
    if not path.is_file():
        raise ModelError(f"{where} lies in {location!r}, which is not beside the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise ModelError(f"{where} has an offset or length that is no number") from None
    size = path.stat().st_size
    if length != expected or offset < 0 or offset + length > size:
        raise ModelError(
            f"{where} needs {expected} bytes of {location!r}; the file has {size} and the model "
            f"names {length} from offset {offset}"
        )
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _dense(proto: onnx.SparseTensorProto, folder: Path | None, where: str) -> np.ndarray:
    values = read_tensor(proto.values, folder, where)
    indices = read_tensor(proto.indices, folder, where)
    dims = tuple(proto.dims)
    size = math.prod(dims)
    if any(d < 0 for d in dims) or size * values.itemsize > max(2**29, 2**10 * values.nbytes):
        raise ModelError(f"{where} is a sparse tensor of the impossible shape {list(dims)}")
    dense = np.zeros(dims, values.dtype)
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        dense.reshape(-1)[flat] = values
    except (ValueError, IndexError) as error:
        raise ModelError(f"{where} is a sparse tensor with bad indices: {error}") from None
    return dense
