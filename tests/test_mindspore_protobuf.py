"""MindSpore .ckpt files, compared with what the protobuf package makes of them: the oracle of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore_files import field, number, tensor, value, write_ckpt
from test_mindspore_file import ARRAYS, read

from llm_boost import CheckpointError
from llm_boost.checkpoint.mindspore_file import read_mindspore_index
from llm_boost.checkpoint.write import OutputTensor, progress_bar, write_mindspore

descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="needs protobuf, of the test group")
from google.protobuf import descriptor_pool, message_factory  # noqa: E402
from google.protobuf.message import DecodeError  # noqa: E402


def checkpoint_class() -> Any:
    """The format as MindSpore defines it, built at run time."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="checkpoint.proto", syntax="proto2")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, str | None]) -> Any:
        added = parent.add(name=name)
        for field_name, label, kind, type_name in fields:
            added.field.add(name=field_name, number=len(added.field) + 1, label=label, type=kind, type_name=type_name)
        return added

    repeated, required, optional = kinds.LABEL_REPEATED, kinds.LABEL_REQUIRED, kinds.LABEL_OPTIONAL
    types = file.message_type
    message(
        types,
        "TensorProto",
        ("dims", repeated, kinds.TYPE_INT64, None),
        ("tensor_type", required, kinds.TYPE_STRING, None),
        ("tensor_content", required, kinds.TYPE_BYTES, None),
    )
    message(types, "MapTensorProto", ("tensor", repeated, kinds.TYPE_MESSAGE, ".TensorProto"))
    top = message(types, "Checkpoint", ("value", repeated, kinds.TYPE_MESSAGE, ".Checkpoint.Value"))
    message(
        top.nested_type,
        "Value",
        ("tag", required, kinds.TYPE_STRING, None),
        ("tensor", optional, kinds.TYPE_MESSAGE, ".TensorProto"),
        ("maptensor", optional, kinds.TYPE_MESSAGE, ".MapTensorProto"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Checkpoint"))


CHECKPOINT = checkpoint_class()


def by_protobuf(message: bytes) -> list[tuple[str, tuple[int, ...], str, bytes]] | None:
    """The tensors of a message, slices joined as MindSpore joins them; None where it is not valid."""
    try:
        parsed = CHECKPOINT.FromString(message)
    except (DecodeError, UnicodeDecodeError):
        return None
    tensors: list[tuple[str, tuple[int, ...], str, bytes]] = []
    for item in parsed.value:
        content = item.tensor.tensor_content
        if tensors and tensors[-1][0] == item.tag:
            content = tensors.pop()[3] + content
        tensors.append((item.tag, tuple(item.tensor.dims), item.tensor.tensor_type, content))
    return tensors


@pytest.mark.parametrize("slice_bytes", [5, 16, 1 << 30])
def test_what_we_write_is_what_protobuf_reads(tmp_path: Path, slice_bytes: int) -> None:
    outputs = [OutputTensor(name, array.dtype.name, array.shape) for name, array in ARRAYS.items()]
    chunks = ([data[:7], data[7:]] for data in (array.tobytes() for array in ARRAYS.values()))
    with (tmp_path / "x.ckpt").open("xb") as file:
        write_mindspore(file, outputs, chunks, progress_bar(outputs, enabled=False), slice_bytes)
    written = (tmp_path / "x.ckpt").read_bytes()
    parsed = CHECKPOINT.FromString(written[:-17])
    found = by_protobuf(written[:-17])
    assert found is not None
    assert [(name, shape, data) for name, shape, _, data in found] == [
        (name, array.shape, array.tobytes()) for name, array in ARRAYS.items()
    ]
    assert all(len(item.tensor.tensor_content) <= slice_bytes for item in parsed.value)
    assert parsed.SerializeToString() == written[:-17]  # byte for byte what protobuf would have written


def test_no_mutation_is_read_otherwise_than_protobuf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    content = write_ckpt(path, ARRAYS, slice_bytes=10, checksum=False).read_bytes()
    content += value("p", field(1, b"\x02\x01") + tensor(())) + value(
        "q", number(1, 2) + tensor((), "Float16", bytes(4))
    )
    random = np.random.default_rng(0)
    accepted = 0
    for _ in range(1500):
        mutant = bytearray(content)
        for at in random.integers(0, len(content), random.integers(0, 4)):
            mutant[at] = random.integers(0, 256)
        data = bytes(mutant[: random.integers(0, 2 * len(content))])
        path.write_bytes(data)
        try:
            ours = read_mindspore_index(path)
        except CheckpointError:
            continue
        accepted += 1
        theirs = by_protobuf(data)
        assert theirs is not None, data
        assert [(t.name, read(t)) for t in ours.values()] == [
            (name, data) for name, _, kind, data in theirs if kind != "str"
        ]
    assert accepted > 100
