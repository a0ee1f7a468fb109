"""The index of a MindSpore ``.ckpt`` file: which tensors it holds, and where their bytes lie.

Format: one protocol buffer message, ``Checkpoint { repeated Value value = 1 }`` with ``Value { string tag = 1;
TensorProto tensor = 2 }`` and ``TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content =
3 }``. A large tensor is several consecutive values of one tag, each with the whole tensor's dims. The message may be
followed by ``crc_num`` and the CRC-32 of all bytes before it, ten bytes, big-endian.

The wire format is parsed here, and not with the protobuf package, because its messages hold copies of their bytes, up
to 2 GiB, and do not say where in the file those were: what the core reads is the file.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llm_boost.checkpoint.tensors import MAX_RANK, Segment, StoredTensor, byte_size
from llm_boost.errors import CheckpointError

# MindSpore's name of a type -> ours.
DTYPES = {
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Float64": "float64",
    "Int8": "int8",
    "Int16": "int16",
    "Int32": "int32",
    "Int64": "int64",
    "UInt8": "uint8",
    "UInt16": "uint16",
    "UInt32": "uint32",
    "UInt64": "uint64",
    "Bool": "bool",
}
_TEXT = "str"  # training notes, which no model needs
CRC_MARK = b"crc_num"
CRC_DIGITS = 10
# How encrypted files begin, in the modes AES-GCM, AES-CBC and SM4-CBC.
_ENCRYPTED = tuple(bytes([mode, 0x5E, 0x3A, 0x7F]) for mode in (0xD8, 0xD9, 0xDA))
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_VALUES = 1 << 20
_MAX_TEXT_BYTES = 4096  # of a name
_CHUNK_BYTES = 4 << 20

_VARINT, _BYTES = 0, 2  # wire types


class _Field(NamedTuple):
    number: int
    wire_type: int
    value: int  # of a varint
    begin: int  # of the contents, in the file
    end: int


@dataclass(frozen=True, slots=True)
class _Value:
    """One ``Value``: a tensor, or a slice of one."""

    tag: str
    tensor_type: str
    dims: tuple[int, ...]
    content: tuple[int, int]  # begin and end in the file


def read_mindspore_index(path: Path, *, verify: bool = True) -> dict[str, StoredTensor]:
    """Lists the tensors of a ``.ckpt`` file; the tensors themselves are read only to verify the checksum.

    Args:
        path: The file.
        verify: Whether a file that carries a checksum is compared with it.

    Raises:
        CheckpointError: The file cannot be read, is damaged or encrypted, or is not a MindSpore checkpoint.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise CheckpointError(f"{path}: is not a file")
        with path.open("rb") as file:
            scan = _Scan(path, file)
            tensors = _join_slices(path, scan)
            if verify and scan.checksum is not None:
                _verify(path, file, scan.end, scan.checksum)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    return tensors


class _Scan:
    """Walks through the message; iteration gives its values in order."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path = path
        self._file = file
        self.file_bytes = os.fstat(file.fileno()).st_size
        self.end = self.file_bytes  # of the message
        self.checksum: int | None = None
        self._refuse_other_formats(file.read(4))
        trailer_bytes = len(CRC_MARK) + CRC_DIGITS
        if self.file_bytes >= trailer_bytes:
            file.seek(-trailer_bytes, io.SEEK_END)
            trailer = file.read(trailer_bytes)
            if trailer.startswith(CRC_MARK):
                self.checksum = int.from_bytes(trailer[len(CRC_MARK) :], "big")
                self.end -= trailer_bytes

    def __iter__(self) -> Iterator[_Value]:
        for count, field in enumerate(self._fields(0, self.end)):
            if count == _MAX_VALUES:
                raise self._fail(field.begin, f"is value {count}, more than any checkpoint has")
            if (field.number, field.wire_type) != (1, _BYTES):
                raise self._unknown(field)
            yield self._value(field)

    def _value(self, value: _Field) -> _Value:
        tag: str | None = None
        tensor: _Field | None = None
        for field in self._fields(value.begin, value.end):
            if field.wire_type == _BYTES and field.number == 1 and tag is None:
                tag = self._text(field)
            elif field.wire_type == _BYTES and field.number == 2 and tensor is None:
                tensor = field
            elif field.wire_type == _BYTES and field.number == 3:
                raise self._fail(field.begin, f"'{tag}' is a hash table (MapParameter), which no language model has")
            else:
                raise self._unknown(field)
        if not tag or tensor is None:
            raise self._fail(value.begin, "is a value without name or tensor")
        return self._tensor(tag, tensor)

    def _tensor(self, tag: str, tensor: _Field) -> _Value:
        dims: list[int] = []
        tensor_type: str | None = None
        content: tuple[int, int] | None = None
        for field in self._fields(tensor.begin, tensor.end):
            if field.number == 1 and field.wire_type == _VARINT:
                dims.append(field.value)
            elif field.number == 1 and field.wire_type == _BYTES:  # packed, as proto3 writers do
                dims += self._packed(field)
            elif field.number == 2 and field.wire_type == _BYTES and tensor_type is None:
                tensor_type = self._text(field)
            elif field.number == 3 and field.wire_type == _BYTES and content is None:
                content = (field.begin, field.end)
            else:
                raise self._unknown(field)
            if len(dims) > MAX_RANK:
                raise self._fail(field.begin, f"'{tag}' has more than {MAX_RANK} dims")
        if tensor_type is None or content is None:
            raise self._fail(tensor.begin, f"'{tag}' has no {'type' if tensor_type is None else 'content'}")
        return _Value(tag, tensor_type, tuple(dims), content)

    def _fields(self, begin: int, end: int) -> Iterator[_Field]:
        """The fields of the message at bytes [begin, end). Consumers may move the file position."""
        position = begin
        while position < end:
            self._file.seek(position)
            key, position = self._varint(position, end)
            value = 0
            stop = position
            if key & 7 == _VARINT:
                value, stop = self._varint(position, end)
            elif key & 7 == _BYTES:
                num_bytes, position = self._varint(position, end)
                stop = position + num_bytes
                if stop > end:
                    raise self._fail(position, f"claims {num_bytes} bytes, {end - position} are left; it is truncated")
            else:
                raise self._fail(position, f"has the wire type {key & 7}")
            yield _Field(key >> 3, key & 7, value, position, stop)
            position = stop

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._file.read(1) if position < end else b""
            if not byte:
                raise self._fail(position, "ends within a number; it is truncated")
            position += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value & (1 << 64) - 1, position
        raise self._fail(position, "has a number of more than ten bytes")

    def _packed(self, field: _Field) -> list[int]:
        values: list[int] = []
        position = field.begin
        while position < field.end and len(values) <= MAX_RANK:
            value, position = self._varint(position, field.end)
            values.append(value)
        return values

    def _text(self, field: _Field) -> str:
        if field.end - field.begin > _MAX_TEXT_BYTES:
            raise self._fail(field.begin, f"has a name of {field.end - field.begin} bytes")
        text = self._file.read(field.end - field.begin).decode("utf-8", errors="replace")
        if not text.isprintable() or "\ufffd" in text:
            raise self._fail(field.begin, "has a name that is not text")
        return text

    def _refuse_other_formats(self, head: bytes) -> None:
        if head in _ENCRYPTED:
            raise CheckpointError(
                f"{self._path}: is encrypted; load it in MindSpore with its key and save it again without one"
            )
        if head.startswith(_PICKLES):
            raise CheckpointError(
                f"{self._path}: is a PyTorch pickle, which may run code and is never opened; save it as safetensors"
            )

    def _unknown(self, field: _Field) -> CheckpointError:
        return self._fail(field.begin, f"has a field {field.number} that the format does not have, or has it twice")

    def _fail(self, position: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: byte {position} {what}; damaged, or not a MindSpore checkpoint")


def _join_slices(path: Path, scan: _Scan) -> dict[str, StoredTensor]:
    """Puts consecutive values of one tag together."""
    groups: dict[str, list[_Value]] = {}
    last = ""
    for value in scan:
        if value.tag != last and value.tag in groups:
            raise CheckpointError(f"{path}: holds '{value.tag}' twice, with other tensors in between")
        groups.setdefault(value.tag, []).append(value)
        last = value.tag
    tensors = {tag: _tensor(path, values) for tag, values in groups.items() if values[0].tensor_type != _TEXT}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor; truncated, or not a MindSpore checkpoint")
    return tensors


def _tensor(path: Path, slices: list[_Value]) -> StoredTensor:
    first = slices[0]
    tag, dims = first.tag, first.dims
    if any((value.dims, value.tensor_type) != (dims, first.tensor_type) for value in slices):
        raise CheckpointError(f"{path}: the slices of '{tag}' disagree on its shape or type")
    dtype = DTYPES.get(first.tensor_type)
    if dtype is None:
        raise CheckpointError(
            f"{path}: '{tag}' has type {first.tensor_type!r:.40}, expected one of {', '.join(DTYPES)}"
        )
    segments = tuple(Segment(str(path), begin, end - begin) for begin, end in (value.content for value in slices))
    stored = sum(segment.num_bytes for segment in segments)
    shape = () if dims == (0,) and stored else dims  # older versions write a scalar's shape so
    if stored != byte_size(dtype, shape):
        raise CheckpointError(
            f"{path}: '{tag}' is {first.tensor_type} {list(shape)}, {byte_size(dtype, shape)} bytes, "
            f"but {stored} are stored; the file is damaged"
        )
    return StoredTensor(tag, dtype, shape, path, segments)


def _verify(path: Path, file: io.BufferedReader, end: int, expected: int) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    found, position = 0, 0
    file.seek(0)
    while position < end:
        count = file.readinto(buffer[: min(_CHUNK_BYTES, end - position)])
        if not count:
            raise CheckpointError(f"{path}: ends at byte {position}, expected {end}; it changed while it was read")
        found = zlib.crc32(buffer[:count], found)
        position += count
    if found != expected:
        raise CheckpointError(f"{path}: has the checksum {found:08x}, expected {expected:08x}; damaged, fetch it again")
