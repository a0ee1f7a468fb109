"""Writing past the page cache: the same bytes, whatever the sizes and the file system."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from llm_boost.checkpoint import direct
from llm_boost.checkpoint.direct import DirectWriter

PIECE = 8192


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_PIECE_BYTES", PIECE)


def written(path: Path, sizes: list[int]) -> tuple[bytes, bytes]:
    """What a file holds, and what it should."""
    parts = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    with path.open("xb") as file:
        with DirectWriter(file.fileno()) as writer:
            for part in parts:
                writer.write(part)
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT
    return path.read_bytes(), b"".join(parts)


@pytest.mark.parametrize("sizes", [[], [1], [PIECE], [PIECE - 1, 2], [3, 5 * PIECE, 7], [PIECE] * 3, [100] * 1000])
def test_every_size(tmp_path: Path, sizes: list[int]) -> None:
    found, expected = written(tmp_path / "x", sizes)
    assert found == expected


def test_a_file_system_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return fcntl_(descriptor, command, flags)

    fcntl_ = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    found, expected = written(tmp_path / "x", [3, 5 * PIECE, 7])
    assert found == expected


def test_partial_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows one is not aligned any more, which some file systems refuse."""

    def write(descriptor: int, data: memoryview) -> int:
        is_direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        if is_direct and os.lseek(descriptor, 0, os.SEEK_CUR) % 512:
            raise OSError(errno.EINVAL, "Invalid argument")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
        try:
            return write_(descriptor, data[:1000])
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | is_direct)

    write_ = os.write
    monkeypatch.setattr(os, "write", write)
    found, expected = written(tmp_path / "x", [3, 5 * PIECE, 7])
    assert found == expected


def test_other_errors_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "x", [PIECE])
