"""The header of a safetensors file, read with the format's own rules and no trust.

Format: 8 bytes little-endian header length N, N bytes of JSON object, then the data. Each entry but ``__metadata__`` is
``{"dtype": ..., "shape": [...], "data_offsets": [begin, end]}`` with offsets into the data. The tensors must cover the
data exactly: no holes, no overlap (which would be a memory bomb), nothing outside.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from llm_boost._json import parse_json_object
from llm_boost.checkpoint.tensors import MAX_RANK, Segment, StoredTensor, byte_size
from llm_boost.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file without reading their data.

    Raises:
        CheckpointError: The file cannot be read, breaks a rule of the format, or holds a type that is not supported.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise CheckpointError(f"{path}: is not a file")
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header = file.read(8)
            if len(header) < 8:
                raise CheckpointError(f"{path}: has {file_bytes} bytes, too few for a safetensors file")
            (header_bytes,) = struct.unpack("<Q", header)
            if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(
                    f"{path}: claims a header of {header_bytes} bytes, the file has {file_bytes}; "
                    "it is truncated or not a safetensors file"
                )
            text = file.read(header_bytes)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: the header does not start with '{{'; not a safetensors file")
    entries = parse_json_object(text, f"{path} (header)", CheckpointError)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not an object of strings")
    data_begin = 8 + header_bytes
    tensors = [_parse_entry(path, name, entry, data_begin) for name, entry in entries.items()]
    _check_cover(path, tensors, data_begin, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _parse_entry(path: Path, name: str, entry: Any, data_begin: int) -> StoredTensor:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: '{name}' {what}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("is not described by exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_list_of_sizes(shape) or len(shape) > MAX_RANK:
        raise fail(f"has the shape {shape!r:.100}, expected at most {MAX_RANK} non-negative integers")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"has the data_offsets {offsets!r:.100}, expected [begin, end]")
    stored_type = entry["dtype"]
    dtype = DTYPES.get(stored_type) if isinstance(stored_type, str) else None
    if dtype is None:
        known = ", ".join(DTYPES)
        raise fail(f"has dtype {stored_type!r:.40}, expected one of {known}; quantised checkpoints are not supported")
    num_bytes = offsets[1] - offsets[0]
    expected = byte_size(dtype, tuple(shape))
    if expected != num_bytes:
        raise fail(f"is {stored_type} {shape}, {expected} bytes, but its data_offsets span {num_bytes}")
    segment = Segment(str(path), data_begin + offsets[0], num_bytes)
    return StoredTensor(name, dtype, tuple(shape), path, (segment,))


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(path: Path, tensors: list[StoredTensor], data_begin: int, file_bytes: int) -> None:
    end = data_begin
    for (_, offset, num_bytes), name in sorted((tensor.segments[0], tensor.name) for tensor in tensors):
        if offset != end:
            what = "overlaps the tensor before it" if offset < end else "leaves a hole before it"
            raise CheckpointError(f"{path}: '{name}' at data offset {offset - data_begin} {what}")
        end += num_bytes
    if end != file_bytes:
        raise CheckpointError(
            f"{path}: its tensors end at byte {end}, the file at {file_bytes}; it is truncated or has data appended"
        )
