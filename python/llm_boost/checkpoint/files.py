"""Which files a checkpoint consists of, and the tensors in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llm_boost._json import read_json_object
from llm_boost.checkpoint.mindspore_file import read_mindspore_index
from llm_boost.checkpoint.safetensors_file import read_safetensors_header
from llm_boost.checkpoint.tensors import StoredTensor
from llm_boost.errors import CheckpointError

Tensors = Mapping[str, StoredTensor]

# How the names of files end -> what reads them, in the order in which a directory is searched for them. MindSpore takes
# any name that ends in "ckpt", with a dot before it or not.
READERS: Mapping[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": read_safetensors_header,
    "ckpt": read_mindspore_index,
}
_SINGLE = "model.safetensors"
# Files that say which file holds a tensor -> the key under which they do.
_INDEXES = {"model.safetensors.index.json": "weight_map", "param_name_map.json": None}
_MAX_INDEX_BYTES = 64 << 20
_RANK = re.compile(r"rank_(0|[1-9]\d{0,3})", re.ASCII)
# How the names of other files end, whose users may expect them to load -> why they do not.
_PICKLE = "is a PyTorch pickle, which is never opened, since it may run code; save the model as safetensors"
_REFUSED = {
    ".bin": _PICKLE,
    ".pt": _PICKLE,
    ".pth": _PICKLE,
    ".gguf": "is a GGUF file; 'llm-boost convert' makes a model directory of it",
}


def is_checkpoint_file(path: Path) -> bool:
    """Whether the name of a file is that of a checkpoint."""
    return path.name.endswith(tuple(READERS))


def open_checkpoint(path: Path) -> tuple[Tensors, ...]:
    """Lists the tensors of a checkpoint without reading them.

    Args:
        path: A ``.safetensors`` or ``.ckpt`` file; or a directory with ``model.safetensors``, an index and its shards,
            other ``.safetensors`` files, ``.ckpt`` files, or directories ``rank_0``, ``rank_1``, ... of such files. The
            first that there is counts, in this order.

    Returns:
        The tensors by their stored names, once for each rank.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged, unsafe or ambiguous.
    """
    with _reading(path):
        if not path.is_dir():
            return (_read_file(path),)
        ranks = rank_directories(path)
        if ranks and not _holds_checkpoint(path):
            return tuple(_read_directory(rank) for rank in ranks)
        return (_read_directory(path),)


def is_read_with(directory: Path, name: str) -> bool:
    """Whether a new file `name` in a directory would be read by `open_checkpoint`: instead of what is there, or too."""
    if name == _SINGLE:
        return True
    others = {entry.name for entry in directory.iterdir()} - {name}
    if others & {_SINGLE, *_INDEXES}:
        return False
    for end in READERS:  # the first kind that there is counts
        if name.endswith(end):
            return True
        if any(other.endswith(end) for other in others):
            return False
    return False


def rank_directories(path: Path) -> list[Path]:
    """The directories ``rank_0``, ``rank_1``, ... of a checkpoint that was saved by several processes, in order.

    Raises:
        CheckpointError: A number is missing, or the directory cannot be read.
    """
    with _reading(path):
        entries = sorted(entry for entry in path.iterdir() if entry.is_dir())
    found = {int(match[1]): entry for entry in entries if (match := _RANK.fullmatch(entry.name))}
    missing = [f"rank_{number}" for number in range(len(found)) if number not in found]
    if missing:
        raise CheckpointError(f"{path}: has {len(found)} directories rank_*, but no {missing[0]}")
    return [found[number] for number in range(len(found))]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise CheckpointError(f"{problem.filename or path}: cannot be read: {problem.strerror or problem}") from problem


def _holds_checkpoint(directory: Path) -> bool:
    return any(is_checkpoint_file(entry) for entry in directory.iterdir())


def _read_file(path: Path) -> Tensors:
    for end, read in READERS.items():
        if path.name.endswith(end):
            return read(path)
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist")
    reason = _refusal(path) or "is not a checkpoint; expected a directory, or a .safetensors or .ckpt file"
    raise CheckpointError(f"{path}: {reason}")


def _read_directory(directory: Path) -> Tensors:
    if (directory / _SINGLE).is_file():
        return read_safetensors_header(directory / _SINGLE)
    for name, key in _INDEXES.items():
        if (directory / name).is_file():
            return _read_indexed(directory / name, key)
    for end, read in READERS.items():
        if paths := sorted(entry for entry in directory.iterdir() if entry.name.endswith(end)):
            return _union(directory, (read(path) for path in paths))
    reasons = [f"; {entry.name} {reason}" for entry in sorted(directory.iterdir()) if (reason := _refusal(entry))]
    raise CheckpointError(
        f"{directory}: has no weights: neither {_SINGLE}, an index of shards, nor other .safetensors or .ckpt files"
        + (reasons[0] if reasons else "")
    )


def _refusal(path: Path) -> str | None:
    """Why a file that users may take for a checkpoint is not loaded."""
    return next((reason for end, reason in _REFUSED.items() if path.name.endswith(end)), None)


def _union(directory: Path, files: Iterable[Tensors]) -> Tensors:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.items():
            if name in tensors:
                raise CheckpointError(
                    f"{directory}: both {tensors[name].path.name} and {tensor.path.name} hold '{name}'; "
                    "if they are checkpoints of their own, name the file that is wanted"
                )
            tensors[name] = tensor
    return tensors


def _read_indexed(index: Path, key: str | None) -> Tensors:
    directory = index.parent
    content = read_json_object(index, CheckpointError, max_bytes=_MAX_INDEX_BYTES)
    weight_map = content if key is None else content.get(key)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no '{key}' object" if key else f"{index}: is empty")
    shards: dict[str, Tensors] = {}
    problems = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names the file {shard!r}, expected a .safetensors file of the same directory"
            )
        if not (directory / shard).is_file():
            problems.append(f"the shard {shard} is missing")
            continue
        shards[shard] = read_safetensors_header(directory / shard)
    if problems:
        raise CheckpointError(f"{index}: " + "; ".join(problems) + "; fetch the model again")
    tensors: dict[str, StoredTensor] = {}
    for shard, stored in shards.items():
        for name, tensor in stored.items():
            if weight_map.get(name) != shard:
                problems.append(f"{shard} holds '{name}', which the index puts in {weight_map.get(name, 'no file')}")
            tensors[name] = tensor
    problems += [
        f"{shard} does not hold '{name}'" for name, shard in weight_map.items() if name not in shards[str(shard)]
    ]
    if problems:
        raise CheckpointError(f"{index}: the index and the shards disagree: " + "; ".join(problems[:20]))
    return tensors
