"""Stored tensors: where the bytes of a tensor lie, and tensors made of others without touching those bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

# The types that weights may have, and the others that checkpoints hold: counters, optimizer state.
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
DTYPE_BYTES: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}
MAX_RANK = 8


class Segment(NamedTuple):
    """Bytes of a file."""

    path: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A row-major, little-endian tensor: its bytes are those of the segments, one after another.

    Attributes:
        dtype: A key of `DTYPE_BYTES`.
        path: The file that messages name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    segments: tuple[Segment, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return byte_size(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.path.name}: '{self.name}' {self.dtype} {list(self.shape)}"

    def row_range(self, name: str, begin: int, end: int) -> StoredTensor:
        """Rows [begin, end) as a tensor of their own."""
        row_bytes = byte_size(self.dtype, self.shape[1:])
        segments = tuple(self._cut(begin * row_bytes, end * row_bytes))
        return StoredTensor(name, self.dtype, (end - begin, *self.shape[1:]), self.path, segments)

    def _cut(self, begin: int, end: int) -> Iterator[Segment]:
        position = 0
        for path, offset, num_bytes in self.segments:
            first, last = max(begin - position, 0), min(end - position, num_bytes)
            if first < last:
                yield Segment(path, offset + first, last - first)
            position += num_bytes


def byte_size(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this type and shape takes."""
    return DTYPE_BYTES[dtype] * math.prod(shape)


def join_rows(name: str, tensors: Sequence[StoredTensor]) -> StoredTensor:
    """The rows of all `tensors`, which have one type and row size, below one another."""
    first = tensors[0]
    rows = sum(tensor.shape[0] for tensor in tensors)
    segments = tuple(segment for tensor in tensors for segment in tensor.segments)
    return StoredTensor(name, first.dtype, (rows, *first.shape[1:]), first.path, segments)


def join_columns(name: str, tensors: Sequence[StoredTensor]) -> StoredTensor:
    """The matrices `tensors`, which have one type and row count, beside one another: a segment a row and matrix."""
    first = tensors[0]
    rows = range(first.shape[0])
    segments = [s for row in rows for tensor in tensors for s in tensor.row_range(name, row, row + 1).segments]
    columns = sum(tensor.shape[1] for tensor in tensors)
    return StoredTensor(name, first.dtype, (first.shape[0], columns), first.path, tuple(segments))


def split_rows(tensor: StoredTensor, names: Sequence[str], rows: Sequence[int]) -> list[StoredTensor]:
    """Undoes `join_rows`: `rows[i]` rows of `tensor` under each `names[i]`."""
    ends = list(accumulate(rows))
    return [tensor.row_range(name, end - count, end) for name, count, end in zip(names, rows, ends, strict=True)]
