"""Reads stored tensors in chunks, in the type that is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType

import ml_dtypes
import numpy as np

from llm_boost import _core
from llm_boost.checkpoint.direct import Buffer
from llm_boost.checkpoint.tensors import DTYPE_BYTES, WEIGHT_DTYPES, StoredTensor
from llm_boost.checkpoint.write import VALID_CHUNKS, OutputTensor
from llm_boost.errors import CheckpointError

# Small enough that a chunk and its conversion stay in the cache. A multiple of any type.
_CHUNK_BYTES = 1 << 20
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def converted(tensors: Sequence[StoredTensor], dtype: str | None) -> list[OutputTensor]:
    """The tensors as they will be written: floating-point ones as `dtype`, where it is given."""
    return [
        OutputTensor(tensor.name, dtype if dtype and tensor.dtype in WEIGHT_DTYPES else tensor.dtype, tensor.shape)
        for tensor in tensors
    ]


class ChunkReader:
    """Reads tensors through a few buffers, and keeps their files open."""

    def __init__(self) -> None:
        self._buffers = [np.empty(_CHUNK_BYTES, np.uint8) for _ in range(VALID_CHUNKS)]
        self._converted = [np.empty(0, np.uint8) for _ in range(VALID_CHUNKS)]
        self._current = 0
        self._descriptors: dict[str, int] = {}
        self._files = ExitStack()

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def chunks(self, tensor: StoredTensor, dtype: str) -> Iterator[Buffer]:
        """The bytes of a tensor, converted to `dtype`. The last `VALID_CHUNKS` are valid.

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
                if filled == _CHUNK_BYTES:
                    yield self._take(tensor, filled, dtype)
                    filled = 0
        if filled:
            yield self._take(tensor, filled, dtype)

    def _read(self, path: str, offset: int, filled: int, end: int) -> int:
        target = self._buffers[self._current][filled : filled + end - offset].data
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

    def _take(self, tensor: StoredTensor, filled: int, dtype: str) -> Buffer:
        """The first bytes of the current buffer, as `dtype`; the next buffer is the current one afterwards."""
        index = self._current
        self._current = (index + 1) % VALID_CHUNKS
        stored = self._buffers[index][:filled]
        if dtype == tensor.dtype:
            return stored.data
        num_bytes = filled // DTYPE_BYTES[tensor.dtype] * DTYPE_BYTES[dtype]
        if self._converted[index].size < num_bytes:
            self._converted[index] = np.empty(num_bytes, np.uint8)
        result = self._converted[index][:num_bytes]
        overflow = _core.convert_elements(stored, tensor.dtype, result, dtype)
        if overflow >= 0:
            value = float(stored.view(_NUMPY[tensor.dtype])[overflow])
            raise CheckpointError(f"{tensor}: holds {value:g}, and float16 ends at 65504; convert it to bf16 or fp32")
        return result.data
