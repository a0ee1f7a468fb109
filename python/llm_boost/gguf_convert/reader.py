"""Reads the header of a GGUF file: its metadata and its table of tensors.

The `gguf` package has a reader as well, but that one acts on the counts in the file before it checks them: a
damaged array length makes it loop or allocate without bound. Here every count is checked against the bytes
that are left, and nothing but `CheckpointError` is raised. The package stays the source of the constants and
of the dequantisation.

Layout, little-endian: magic, version, number of tensors, number of keys; the key-value pairs; per tensor its
name, dimensions, type and offset; padding up to the alignment; the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from llm_boost.errors import CheckpointError

MetadataValue: TypeAlias = "int | float | bool | str | list[str] | npt.NDArray[np.generic]"
_T = TypeVar("_T", int, float, bool, str)

# Far above what real files hold (a vocabulary of 256 k tokens makes a header of about 15 MB), and low enough
# that a hostile header is refused within seconds.
_MAX_HEADER_BYTES = 1 << 26
_MAX_ENTRIES = 1 << 16  # keys, and tensors
_MAX_ARRAY = 1 << 20  # elements
_MAX_DIMS = 4  # GGML_MAX_DIMS
_VERSIONS = (2, 3)

_NUMPY_TYPES = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table.

    Attributes:
        name: GGUF name, for example ``blk.0.attn_q.weight``.
        type: How the elements are quantised.
        shape: Slowest dimension first, as in numpy; the file has them the other way round.
        offset: Of the first byte, from the start of the file.
        row_bytes: Size of one row, that is of ``shape[-1]`` elements.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the tensor."""
        return self.offset + prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GgufTensor]

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """Reads one tensor as it is stored, ``[rows, row_bytes]``.

        Raises:
            CheckpointError: The file cannot be read, or has become shorter.
        """
        tensor = self.tensors[name]
        num_bytes = tensor.end - tensor.offset
        try:
            data = np.fromfile(self.path, np.uint8, num_bytes, offset=tensor.offset)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot read '{name}': {error.strerror}") from error
        if data.size != num_bytes:
            raise CheckpointError(f"{self.path}: '{name}' is cut short; the file changed while it was read")
        return data.reshape(-1, tensor.row_bytes)

    def dequantise(self, name: str, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Dequantises some stored `rows` of a tensor to ``[rows, columns]``.

        Damaged scales give NaN or infinite elements.

        Raises:
            CheckpointError: The gguf package cannot dequantise the type of the tensor.
        """
        kind = self.tensors[name].type
        try:
            with np.errstate(all="ignore"):
                return dequantize(rows, kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: '{name}' has type {kind.name}, which the gguf package cannot dequantise; "
                "start from a GGUF of another type"
            ) from None

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """Returns the value of `key`, which has to be of `kind`.

        Raises:
            CheckpointError: The key is absent and there is no default, or the value is of another kind.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: metadata key '{key}' is missing, which the conversion needs")
        if type(value) is not kind:
            raise self._wrong_kind(key, kind.__name__)
        return value

    def get_strings(self, key: str) -> list[str]:
        """Returns the list of strings at `key`; empty when the key is absent."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list):
            raise self._wrong_kind(key, "a list of strings")
        return value

    def get_numbers(self, key: str) -> npt.NDArray[np.generic] | None:
        """Returns the array at `key`; None when the key is absent."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, np.ndarray):
            raise self._wrong_kind(key, "an array of numbers")
        return value

    def _wrong_kind(self, key: str, expected: str) -> CheckpointError:
        found = repr(self.metadata[key])[:60]
        return CheckpointError(f"{self.path}: metadata key '{key}' is {found}, expected {expected}")


def read_gguf(path: Path) -> GgufFile:
    """Reads and checks the header of the GGUF file at `path`.

    Raises:
        CheckpointError: The file is not there, is not a GGUF of a supported version, or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a GGUF file")
    try:
        with path.open("rb") as file:
            return _read_header(_Cursor(file, path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


class _Cursor:
    """Walks through the header; what it is asked for is there, or it raises `CheckpointError`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.file_bytes = path.stat().st_size
        self.position = 0
        self._file = file
        self._end = min(self.file_bytes, _MAX_HEADER_BYTES)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: byte {self.position}: {problem}")

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self._end - self.position:
            limit = "the file ends" if self._end == self.file_bytes else "the longest header ends"
            raise self.error(f"expected {num_bytes} more bytes, but {limit} at {self._end}; is it complete?")
        data = self._file.read(num_bytes)
        if len(data) != num_bytes:
            raise self.error("the file became shorter while it was read")
        self.position += num_bytes
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, what: str, limit: int) -> int:
        count = self.u64()
        if count > limit:
            raise self.error(f"{count} {what}, expected at most {limit}; the file is damaged")
        return count

    def text(self) -> str:
        data = self.take(self.u64())
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a string is not UTF-8 ({error.reason}); the file is damaged") from error

    def value_type(self) -> GGUFValueType:
        raw = self.u32()
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise self.error(f"{raw} is not a type of metadata value; the file is damaged") from None

    def value(self) -> MetadataValue:
        kind = self.value_type()
        if kind is GGUFValueType.ARRAY:
            return self.array()
        if kind is GGUFValueType.STRING:
            return self.text()
        dtype = np.dtype(_NUMPY_TYPES[kind])
        value: np.generic = np.frombuffer(self.take(dtype.itemsize), dtype)[0]
        # 1e-5 stored in 32 bits is the double 9.99999974e-06; the shortest decimal is what its author wrote.
        result: int | float | bool = float(str(value)) if kind is GGUFValueType.FLOAT32 else value.item()
        return result

    def array(self) -> list[str] | npt.NDArray[np.generic]:
        kind = self.value_type()
        count = self.count("array elements", _MAX_ARRAY)
        if kind is GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        if kind is GGUFValueType.ARRAY:
            raise self.error("arrays of arrays are not supported")
        dtype = np.dtype(_NUMPY_TYPES[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _read_header(cursor: _Cursor) -> GgufFile:
    if cursor.take(4) != b"GGUF":
        raise cursor.error("the magic 'GGUF' is not there; this is no GGUF file")
    version = cursor.u32()
    if version not in _VERSIONS:
        # A big-endian file shows its version in the upper half.
        hint = f"versions {_VERSIONS} are supported" if version & 0xFFFF else "big-endian is not supported"
        raise cursor.error(f"GGUF version {version}; {hint}; make the GGUF again with current tools")
    num_tensors = cursor.count("tensors", _MAX_ENTRIES)
    num_keys = cursor.count("metadata keys", _MAX_ENTRIES)

    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_keys):
        key = cursor.text()
        if key in metadata:
            raise cursor.error(f"metadata key '{key}' appears twice")
        metadata[key] = cursor.value()

    tensors: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor_info(cursor)
        if tensor.name in tensors:
            raise cursor.error(f"tensor '{tensor.name}' appears twice")
        tensors[tensor.name] = tensor
    return GgufFile(cursor.path, metadata, _place(cursor, metadata, tensors))


def _read_tensor_info(cursor: _Cursor) -> GgufTensor:
    """Reads one row of the tensor table; its offset still counts from the start of the tensors."""
    name = cursor.text()
    num_dims = cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.error(f"tensor '{name}' has {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
    shape = tuple(cursor.u64() for _ in range(num_dims))[::-1]
    raw_type = cursor.u32()
    try:
        kind = GGMLQuantizationType(raw_type)
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise cursor.error(f"tensor '{name}' has type {raw_type}, unknown to this gguf package") from None
    if 0 in shape or shape[-1] % block_size:
        raise cursor.error(f"tensor '{name}' has shape {shape}, expected whole blocks of {block_size}")
    return GgufTensor(name, kind, shape, cursor.u64(), shape[-1] // block_size * block_bytes)


def _place(
    cursor: _Cursor, metadata: dict[str, MetadataValue], tensors: dict[str, GgufTensor]
) -> dict[str, GgufTensor]:
    """Makes the offsets absolute, and checks that the tensors lie inside the file and do not overlap."""
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.error(f"'general.alignment' is {repr(alignment)[:60]}, expected a power of two")
    start = -(-cursor.position // alignment) * alignment
    placed = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()}
    # Overlaps would let a small file stand for a very large model.
    end = start
    for tensor in sorted(placed.values(), key=lambda tensor: tensor.offset):
        if not end <= tensor.offset < tensor.end <= cursor.file_bytes:
            raise CheckpointError(
                f"{cursor.path}: tensor '{tensor.name}' takes bytes {tensor.offset} to {tensor.end}, but the "
                f"one before ends at {end} and the file at {cursor.file_bytes}; is it complete?"
            )
        end = tensor.end
    return placed
