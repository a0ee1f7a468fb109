"""Reads stored tensors in chunks, in the type that is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import ml_dtypes
import numpy as np

from llm_boost.checkpoint.tensors import WEIGHT_DTYPES, StoredTensor
from llm_boost.checkpoint.write import Buffer, OutputTensor
from llm_boost.errors import CheckpointError

# Large enough for the disk, and small enough that a chunk and its conversion stay in the cache. A multiple of any type.
_CHUNK_BYTES = 1 << 20
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def converted(tensors: Sequence[StoredTensor], dtype: str | None) -> list[OutputTensor]:
    """The tensors as they will be written: floating-point ones as `dtype`, where it is given."""
    return [
        OutputTensor(tensor.name, dtype if dtype and tensor.dtype in WEIGHT_DTYPES else tensor.dtype, tensor.shape)
        for tensor in tensors
    ]


class ChunkReader:
    """Reads tensors through one buffer, and keeps their files open."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._descriptors: dict[str, int] = {}
        self._files = ExitStack()

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def chunks(self, tensor: StoredTensor, dtype: str) -> Iterator[Buffer]:
        """The bytes of a tensor, converted to `dtype`. A chunk is valid until the next one is asked for.

        Raises:
            CheckpointError: A file cannot be read, or a value does not fit `dtype`.
        """
        filled = 0
        for path, offset, num_bytes in tensor.segments:
            end = offset + num_bytes
            while offset < end:
                count = self._read(path, offset, filled, end)
                offset += count
                filled += count
                if filled == len(self._buffer):
                    yield _convert(tensor, self._buffer, dtype)
                    filled = 0
        if filled:
            yield _convert(tensor, self._buffer[:filled], dtype)

    def _read(self, path: str, offset: int, filled: int, end: int) -> int:
        target = self._buffer[filled : filled + end - offset]
        try:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._files.callback(os.close, self._descriptors[path])
            count = os.preadv(self._descriptors[path], [target], offset)
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
        if not count:
            raise CheckpointError(f"{path}: ends at byte {offset}, expected {end - offset} more; it changed while read")
        return count


def _convert(tensor: StoredTensor, data: memoryview, dtype: str) -> Buffer:
    if dtype == tensor.dtype:
        return data
    values = np.frombuffer(data, _NUMPY[tensor.dtype]).astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        bits = values.astype(_NUMPY[dtype]).view(np.uint8)
    if dtype == "float16":
        overflow = (bits.view(np.uint16) & 0x7FFF == 0x7C00) & np.isfinite(values)
        if overflow.any():
            raise CheckpointError(
                f"{tensor}: holds {values[overflow][0]:g}, and float16 ends at 65504; convert it to bf16 or fp32"
            )
    return bits.data
