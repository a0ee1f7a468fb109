"""Output files and directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llm_boost.errors import CheckpointError


@contextmanager
def new_file(target: Path, *, num_bytes: int, force: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing, which becomes `target` when the block ends without an exception.

    Until then it is ``<target>.partial-<id>``. Unlike MindSpore, which leaves files that only their owner may read, the
    file gets the permissions that the user's umask gives to all files.

    Args:
        target: The file to make; missing directories above it are made too.
        num_bytes: What will be written; it must fit on the disk.
        force: Whether `target` is replaced if it is a file already.

    Raises:
        CheckpointError: `target` exists or cannot be written, or the disk is too small.
    """
    check_new_file(target, force=force)
    partial = _beside(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, num_bytes)
        with partial.open("xb") as file:
            yield file
            sync(file)
        partial.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is gone, or has never been there
            partial.unlink()


@contextmanager
def new_directory(target: Path, *, source: Path, force: bool = False, mark: str = "config.json") -> Iterator[Path]:
    """Makes a directory, which becomes `target` when the block ends without an exception.

    Until then it is ``<target>.partial-<id>``.

    Args:
        target: The directory to make; it may be there if it is empty.
        source: What it is made of, which must not lie in a directory that would be replaced.
        force: Whether `target` is replaced if it is the outcome of an earlier conversion.
        mark: The file that tells such an outcome from any other directory.

    Raises:
        CheckpointError: `target` exists or cannot be written.
    """
    _check_new_directory(source, target, force=force, mark=mark)
    partial, replaced = _beside(target, "partial"), _beside(target, "replaced")
    try:
        partial.mkdir(parents=True)
        yield partial
        if force and os.path.lexists(target):
            target.rename(replaced)
        partial.rename(target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(target):
            replaced.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def check_new_file(target: Path, *, force: bool) -> None:
    """Raises CheckpointError unless `target` may be written as a file."""
    if os.path.isdir(target):
        raise CheckpointError(f"{target}: is a directory, expected the name of the file to make")
    if not os.path.lexists(target):
        return
    if not force:
        raise CheckpointError(f"{target}: exists already; choose another name, or --force to replace it")
    if not target.is_symlink() and not target.is_file():
        raise CheckpointError(f"{target}: is not a file, and so not replaced; choose another name")


def check_space(directory: Path, num_bytes: int) -> None:
    """Raises CheckpointError when the disk of `directory` has no room for so many bytes."""
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise CheckpointError(
            f"{directory}: {num_bytes / 1e6:,.1f} MB are to be written, but the disk has {free / 1e6:,.1f} MB left"
        )


def sync(file: BinaryIO) -> None:
    """Waits until the contents are on the disk: a power failure must not leave a name without contents."""
    file.flush()
    os.fsync(file.fileno())


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f"{target.name}.{what}-{uuid.uuid4().hex[:8]}")


def _check_new_directory(source: Path, target: Path, *, force: bool, mark: str) -> None:
    if not target.name:
        raise CheckpointError(f"{target}: has no name, expected that of the directory to make")
    if not os.path.lexists(target) or (os.path.isdir(target) and not os.listdir(target)):
        return
    if not force:
        raise CheckpointError(f"{target}: exists already; choose another name, or --force to replace it")
    # Force is for the outcome of an earlier conversion, not for whatever has that name.
    if target.is_symlink() or not (target / mark).is_file():
        raise CheckpointError(
            f"{target}: is not what a conversion made (no {mark}), and so not replaced; choose another name"
        )
    if source.resolve().is_relative_to(target.resolve()):
        raise CheckpointError(f"{source}: lies in '{target}', which would be replaced; choose another name")
