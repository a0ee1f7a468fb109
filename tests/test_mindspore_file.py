"""MindSpore .ckpt files: what is stored is what is found, and every malformed file is one typed error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mindspore_files import field, number, tensor, trailer, value, varint, write_ckpt
from reference.numpy_decoder import Array

from llm_boost import CheckpointError, InternalError
from llm_boost.checkpoint import StoredTensor, open_checkpoint
from llm_boost.checkpoint.mindspore_file import read_mindspore_index
from llm_boost.checkpoint.write import OutputTensor, progress_bar, write_mindspore, write_safetensors

GOOD = value("a") + value("b")

HOSTILE = {
    "empty": (b"", "holds no tensor"),
    "only a checksum": (trailer(b""), "holds no tensor"),
    "only text": (value("note", tensor((0,), "str", "hi".encode("utf-32-le"))), "holds no tensor"),
    "text file": (b"Hello, world, this is a README.\n", "byte 1 .*; damaged, or not a MindSpore checkpoint"),
    "zeros": (bytes(64), "damaged, or not a MindSpore"),
    "cut in a length": (GOOD[:1], "ends within a number; it is truncated"),
    "cut in a tensor": (GOOD[:-3], "claims .* bytes, .* are left; it is truncated"),
    "length beyond the file": (varint(10) + varint(1 << 40) + b"x", "claims 1099511627776 bytes, 1 are left"),
    "length of 2^63": (varint(10) + varint(1 << 63) + b"x", "claims 9223372036854775808 bytes"),
    "endless number": (b"\x0a" + b"\xff" * 12, "has a number of more than ten bytes"),
    "group": (b"\x0b\x0c", "has the wire type 3"),
    "other field": (GOOD + field(2, b"x"), "a field 2 that the format does not have"),
    "value is a number": (GOOD + number(1, 3), "a field 1 that the format does not have"),
    "value without name": (field(1, field(2, tensor())), "without name or tensor"),
    "value with an empty name": (value(""), "without name or tensor"),
    "value without tensor": (field(1, field(1, b"a")), "without name or tensor"),
    "value with two names": (field(1, field(1, b"a") * 2 + field(2, tensor())), "or has it twice"),
    "value with two tensors": (field(1, field(1, b"a") + field(2, tensor()) * 2), "or has it twice"),
    "hash table": (field(1, field(1, b"a") + field(3, b"")), "'a' is a hash table"),
    "name of 5000 bytes": (value("a" * 5000), "has a name of 5000 bytes"),
    "name with an escape": (value("\x1b[31m"), "has a name that is not text"),
    "name not UTF-8": (field(1, field(1, b"\xff\xfe") + field(2, tensor())), "has a name that is not text"),
    "tensor without type": (value("a", number(1, 2) + field(3, bytes(8))), "'a' has no type"),
    "tensor without content": (value("a", number(1, 2) + field(2, b"Float32")), "'a' has no content"),
    "tensor with two contents": (value("a", tensor() + field(3, b"")), "or has it twice"),
    "unknown type": (value("a", tensor((2,), "Float8", bytes(2))), "'a' has type 'Float8', expected one of Float32"),
    "rank 9": (value("a", tensor((1,) * 9, content=bytes(4))), "'a' has more than 8 dims"),
    "packed rank 9": (value("a", field(1, b"\x01" * 9) + tensor((), content=bytes(4))), "'a' has more than 8 dims"),
    "packed dims cut": (value("a", field(1, b"\x81") + tensor((), content=bytes(4))), "ends within a number"),
    "negative extent": (value("a", tensor(((1 << 64) - 1,))), "but 8 are stored"),
    "shape overflows": (value("a", tensor((1 << 62, 1 << 62))), "but 8 are stored"),
    "too little content": (value("a", tensor((3,))), r"'a' is Float32 \[3\], 12 bytes, but 8 are stored"),
    "too much content": (value("a", tensor((1,))), r"'a' is Float32 \[1\], 4 bytes, but 8 are stored"),
    "same name twice": (value("a") + value("b") + value("a"), "holds 'a' twice, with other tensors in between"),
    "slices of other shapes": (
        value("a", tensor((4,))) + value("a", tensor((2, 2))),
        "the slices of 'a' disagree on its shape or type",
    ),
    "slices of other types": (value("a", tensor((4,))) + value("a", tensor((4,), "Int32")), "slices of 'a' disagree"),
    "slice missing": (value("a", tensor((4,))) + value("b"), "16 bytes, but 8 are stored"),
    "checksum wrong": (GOOD + trailer(GOOD + b"x"), "has the checksum .*, expected .*; damaged"),
    "checksum of 2^79": (GOOD + b"crc_num" + b"\xff" * 10, "has the checksum"),
    "encrypted": (b"\xd8\x5e\x3a\x7f" + bytes(40), "is encrypted; load it in MindSpore with its key"),
    "encrypted SM4": (b"\xda\x5e\x3a\x7f" + bytes(40), "is encrypted"),
    "PyTorch archive": (b"PK\x03\x04" + bytes(40), "is a PyTorch pickle, which may run code"),
    "PyTorch pickle": (b"\x80\x02}q\x00." + bytes(40), "is a PyTorch pickle"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_mindspore_index(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\x1b" not in str(caught.value)


def read(tensor: StoredTensor) -> bytes:
    data = b""
    for path, offset, num_bytes in tensor.segments:
        data += Path(path).read_bytes()[offset : offset + num_bytes]
    return data


ARRAYS: dict[str, Array] = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "f16": np.arange(5, dtype=np.float16),
    "bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "step": np.asarray(7, np.int32),
    "nothing": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("slice_bytes", [1, 3, 4, 7, 16, 1 << 30])
def test_what_is_stored_is_found(tmp_path: Path, slice_bytes: int, checksum: bool) -> None:
    path = write_ckpt(tmp_path / "x.ckpt", ARRAYS, slice_bytes=slice_bytes, checksum=checksum)
    (tensors,) = open_checkpoint(path)
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        name: (array.dtype.name, array.shape) for name, array in ARRAYS.items()
    }
    assert {name: read(t) for name, t in tensors.items()} == {name: a.tobytes() for name, a in ARRAYS.items()}


def test_scalars_of_older_versions_and_text(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    note = value("note", tensor((0,), "str", "hi".encode("utf-32-le")))
    path.write_bytes(note + value("s", tensor((0,), "Float32", bytes(4))) + value("e", tensor((0,), content=b"")))
    tensors = read_mindspore_index(path)
    assert {name: t.shape for name, t in tensors.items()} == {"s": (), "e": (0,)}


def test_packed_dims_and_fields_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    body = field(3, bytes(range(24))) + field(2, b"Float32") + field(1, b"\x02\x03")
    path.write_bytes(field(1, field(2, body) + field(1, b"a")))
    (found,) = read_mindspore_index(path).values()
    assert (found.shape, read(found)) == ((2, 3), bytes(range(24)))


def test_every_truncation_and_every_flip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    first = write_ckpt(path, {"f32": ARRAYS["f32"]}, checksum=False).read_bytes()
    content = write_ckpt(path, {"f32": ARRAYS["f32"], "bf16": ARRAYS["bf16"]}).read_bytes()
    valid = {len(first), len(content) - 17, len(content)}  # without its checksum, a prefix may be a file
    mutants = [content[:size] for size in range(len(content)) if size not in valid]
    mutants += [
        content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :] for i in range(len(content)) for bit in range(8)
    ]
    for mutant in mutants:
        path.write_bytes(mutant)
        with pytest.raises(CheckpointError):
            read_mindspore_index(path)


def test_a_checksum_need_not_be_verified(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(GOOD + trailer(b"other"))
    assert list(read_mindspore_index(path, verify=False)) == ["a", "b"]


@pytest.mark.parametrize("write", [write_mindspore, write_safetensors])
@pytest.mark.parametrize("num_bytes", [7, 9])
def test_writing_other_bytes_than_announced_is_a_bug(
    tmp_path: Path, write: Callable[..., None], num_bytes: int
) -> None:
    outputs = [OutputTensor("a", "float32", (2,))]
    message = f"'a' has 8 bytes, but {num_bytes} came"
    with (tmp_path / "x").open("xb") as file, pytest.raises(InternalError, match=message):
        write(file, outputs, [[bytes(num_bytes)]], progress_bar(outputs, enabled=False))


class Bar:
    """Counts as a progress bar does."""

    n = 0

    def update(self, num_bytes: int) -> None:
        self.n += num_bytes


@pytest.mark.parametrize("write", [write_mindspore, write_safetensors])
def test_the_bar_ends_at_its_total(tmp_path: Path, write: Callable[..., None]) -> None:
    outputs = [OutputTensor("a", "float32", (2,)), OutputTensor("none", "int8", (0,)), OutputTensor("b", "int8", (5,))]
    total, bar = progress_bar(outputs, enabled=False).total, Bar()
    with (tmp_path / "x").open("xb") as file:
        write(file, outputs, [[bytes(3), bytes(5)], [], [bytes(5)]], bar)
    assert (bar.n, total) == (13, 13)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("missing.ckpt", "pipe.ckpt"):
        with pytest.raises(CheckpointError, match=f"{name}: is not a file"):
            read_mindspore_index(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "missing")
