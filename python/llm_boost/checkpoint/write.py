"""Writes checkpoint files, a chunk of a tensor at a time."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from tqdm import tqdm

from llm_boost.checkpoint import mindspore_file, safetensors_file
from llm_boost.checkpoint.direct import Buffer, DirectWriter
from llm_boost.checkpoint.tensors import byte_size
from llm_boost.errors import InternalError

# Of a tensor, in one value of a MindSpore file: a protocol buffer message must stay below 2 GiB.
SLICE_BYTES = 512 << 20
# Names, shapes and offsets take less than this for each tensor, in every format.
_HEADER_BYTES = 1024

# Chunks that are in use at a time: one is written while the next is made.
VALID_CHUNKS = 2
_SAFETENSORS_TYPES = {ours: theirs for theirs, ours in safetensors_file.DTYPES.items()}
_MINDSPORE_TYPES = {ours: theirs for theirs, ours in mindspore_file.DTYPES.items()}


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write; `dtype` is a key of `DTYPE_BYTES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return byte_size(self.dtype, self.shape)


def file_bytes(tensors: Iterable[OutputTensor]) -> int:
    """What a file with these tensors takes at most."""
    return sum(tensor.num_bytes + _HEADER_BYTES for tensor in tensors)


def progress_bar(tensors: Iterable[OutputTensor], *, enabled: bool) -> Any:
    """A bar over the bytes of the tensors, which shows where stderr is a terminal."""
    total = sum(tensor.num_bytes for tensor in tensors)
    return tqdm(total=total, desc="convert", unit="B", unit_scale=True, disable=None if enabled else True)


def write_safetensors(
    file: BinaryIO, tensors: Sequence[OutputTensor], contents: Iterable[Iterable[Buffer]], bar: Any, title: str = "pt"
) -> None:
    """Writes a safetensors file.

    Args:
        file: Where to.
        tensors: What the file will hold.
        contents: The bytes of each tensor, in chunks of any size, in the order of `tensors`. The last
            `VALID_CHUNKS` must be valid.
        bar: Is updated by the bytes of the tensors.
        title: The framework whose conventions the names and shapes follow.

    Raises:
        OSError: The file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": title}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are to be aligned to 8 bytes
    _write_all(file, chain([len(text).to_bytes(8, "little") + text], _checked(tensors, contents, bar)))


def write_mindspore(
    file: BinaryIO,
    tensors: Sequence[OutputTensor],
    contents: Iterable[Iterable[Buffer]],
    bar: Any,
    slice_bytes: int = SLICE_BYTES,
) -> None:
    """Writes a MindSpore ``.ckpt`` file with a checksum at its end.

    Args:
        file: Where to.
        tensors: What the file will hold.
        contents: The bytes of each tensor, in chunks of any size, in the order of `tensors`. The last
            `VALID_CHUNKS` must be valid.
        bar: Is updated by the bytes of the tensors.
        slice_bytes: Tensors with more bytes are cut into so large values.

    Raises:
        OSError: The file cannot be written.
    """
    checksum = 0

    def parts() -> Iterator[Buffer]:
        nonlocal checksum
        for part in _mindspore_parts(tensors, contents, bar, slice_bytes):
            checksum = zlib.crc32(part, checksum)
            yield part
        yield mindspore_file.CRC_MARK + checksum.to_bytes(mindspore_file.CRC_DIGITS, "big")

    _write_all(file, parts())


def _write_all(file: BinaryIO, parts: Iterator[Buffer]) -> None:
    """Writes all parts of a new file, each while a thread makes the next: reads, converts, adds to the checksum."""
    with DirectWriter(file.fileno()) as writer, ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, parts, None)
        while (part := pending.result()) is not None:
            pending = pool.submit(next, parts, None)
            writer.write(part)


def _mindspore_parts(
    tensors: Sequence[OutputTensor], contents: Iterable[Iterable[Buffer]], bar: Any, slice_bytes: int
) -> Iterator[Buffer]:
    for tensor, chunks in zip(tensors, contents, strict=True):
        left, room = tensor.num_bytes, 0  # bytes of the tensor, and of its current slice
        if not left:
            yield _value_header(tensor, 0)
        for chunk in _checked([tensor], [chunks], bar):
            rest = memoryview(chunk)
            while rest:
                if not room:
                    room = min(slice_bytes, left)
                    yield _value_header(tensor, room)
                part, rest = rest[:room], rest[room:]
                yield part
                room -= len(part)
                left -= len(part)


def _checked(tensors: Sequence[OutputTensor], contents: Iterable[Iterable[Buffer]], bar: Any) -> Iterator[Buffer]:
    """The chunks of all tensors, counted by `bar`; headers have promised how many bytes they are."""
    for tensor, chunks in zip(tensors, contents, strict=True):
        left = tensor.num_bytes
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
            bar.update(len(chunk))
        if left:
            raise InternalError(f"'{tensor.name}' has {tensor.num_bytes} bytes, but {tensor.num_bytes - left} came")


def _value_header(tensor: OutputTensor, content_bytes: int) -> bytes:
    """All of a ``Value`` that comes before so many bytes of the tensor."""
    dims = b"".join(b"\x08" + _varint(extent) for extent in tensor.shape)
    head = dims + _field(2, _MINDSPORE_TYPES[tensor.dtype].encode()) + b"\x1a" + _varint(content_bytes)
    tensor_proto = b"\x12" + _varint(len(head) + content_bytes) + head
    value = _field(1, tensor.name.encode()) + tensor_proto
    return b"\x0a" + _varint(len(value) + content_bytes) + value


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
