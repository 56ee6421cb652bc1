"""A writer of FlatBuffers: tables, vectors and strings from plain Python values.

https://flatbuffers.dev/internals: offsets point forward, so every object comes after its parents.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Scalar", "Table", "Vector", "dump"]


@dataclass(frozen=True)
class Scalar:
    """A number stored in its table; `code` is struct's, such as "i" for int32."""

    code: str
    value: Any


@dataclass(frozen=True, eq=False)
class Table:
    """Field number -> Scalar, Table, Vector or str; absent fields have their defaults."""

    fields: Mapping[int, Any]


@dataclass(frozen=True, eq=False)
class Vector:
    """Numbers of one struct code (or bytes, code "B"), or tables and strings (code "")."""

    code: str
    items: Sequence[Any] | bytes
    align: int = 4


def dump(root: Table, identifier: bytes) -> bytes:
    """The buffer of a root table with a file identifier of four bytes."""
    out = bytearray(8)
    out[4:8] = identifier
    waiting: list[tuple[int, Any]] = [(0, root)]
    while waiting:
        place, value = waiting.pop()
        at = _WRITERS[type(value)](out, value, waiting)
        struct.pack_into("<I", out, place, at - place)
    return bytes(out)


def _table(out: bytearray, table: Table, waiting: list[tuple[int, Any]]) -> int:
    sizes = {
        key: struct.calcsize(f"<{v.code}") if isinstance(v, Scalar) else 4
        for key, v in table.fields.items()
    }
    offsets, size = {}, 4
    for key in sorted(sizes, key=lambda k: -sizes[k]):
        size += -size % sizes[key]
        offsets[key] = size
        size += sizes[key]
    count = max(sizes, default=-1) + 1
    _align(out, 2)
    vtable = len(out)
    entries = [4 + 2 * count, size, *(offsets.get(key, 0) for key in range(count))]
    out += struct.pack(f"<{len(entries)}H", *entries)
    _align(out, 8)
    start = len(out)
    out += struct.pack("<i", start - vtable) + bytes(size - 4)
    for key, value in table.fields.items():
        if isinstance(value, Scalar):
            struct.pack_into(f"<{value.code}", out, start + offsets[key], value.value)
        else:
            waiting.append((start + offsets[key], value))
    return start


def _vector(out: bytearray, vector: Vector, waiting: list[tuple[int, Any]]) -> int:
    width = struct.calcsize(f"<{vector.code}") if vector.code else 4
    _align(out, max(vector.align, width, 4), 4)
    start = len(out)
    out += struct.pack("<I", len(vector.items))
    if isinstance(vector.items, bytes):
        out += vector.items
    elif vector.code:
        out += struct.pack(f"<{len(vector.items)}{vector.code}", *vector.items)
    else:
        waiting.extend((start + 4 + 4 * i, item) for i, item in enumerate(vector.items))
        out += bytes(4 * len(vector.items))
    return start


def _string(out: bytearray, text: str, waiting: list[tuple[int, Any]]) -> int:
    _align(out, 4)
    start = len(out)
    content = text.encode()
    out += struct.pack("<I", len(content)) + content + b"\0"
    return start


def _align(out: bytearray, size: int, ahead: int = 0) -> None:
    """Pads so that the byte `ahead` of the end lies on a multiple of `size`."""
    out += bytes(-(len(out) + ahead) % size)


_WRITERS = {Table: _table, Vector: _vector, str: _string}
