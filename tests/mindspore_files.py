"""MindSpore .ckpt files of any contents, right or wrong, by an encoder that shares nothing with the package's."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from reference.numpy_decoder import Array

TYPES = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16", "int32": "Int32"}


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def tensor(dims: tuple[int, ...] = (2,), kind: str = "Float32", content: bytes = bytes(8)) -> bytes:
    return b"".join(number(1, extent) for extent in dims) + field(2, kind.encode()) + field(3, content)


def value(tag: str = "a", body: bytes | None = None) -> bytes:
    """One Value, wrapped as the file has it."""
    return field(1, field(1, tag.encode()) + field(2, tensor() if body is None else body))


def trailer(message: bytes) -> bytes:
    return b"crc_num" + bytes(6) + struct.pack(">I", zlib.crc32(message))


def write_ckpt(path: Path, arrays: dict[str, Array], *, slice_bytes: int = 1 << 30, checksum: bool = True) -> Path:
    """Writes `arrays`, as MindSpore would."""
    message = b""
    for name, array in arrays.items():
        data = array.tobytes()
        for begin in range(0, max(len(data), 1), slice_bytes):
            part = data[begin : begin + slice_bytes]
            message += value(name, tensor(array.shape, TYPES[array.dtype.name], part))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(message + (trailer(message) if checksum else b""))
    return path
