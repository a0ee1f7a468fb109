"""Stored tensors, and their assembly into the core's weight table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_boost import _core
from llm_boost.errors import CheckpointError

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where the bytes of one tensor lie: row-major, little-endian, in one piece of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.path.name}: '{self.name}' {self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Part:
    """A stored tensor that is a run of rows of a canonical weight."""

    name: str
    shape: tuple[int, ...]


# Canonical weight name -> the stored parts whose rows it consists of, in order.
WeightMap = Mapping[str, tuple[Part, ...]]


def build_weight_table(
    stored: Mapping[str, StoredTensor], weights: WeightMap, ignored: frozenset[str] = frozenset()
) -> _core.WeightTable:
    """Assembles the canonical weights from stored tensors.

    Args:
        stored: All tensors of the checkpoint, by their stored names.
        weights: The parts that each canonical weight is made of.
        ignored: Stored names that are known and not needed.

    Raises:
        CheckpointError: One error that lists all missing, surplus and misshapen tensors.
    """
    parts = [part for group in weights.values() for part in group]
    problems = [problem for part in parts if (problem := _part_problem(part, stored.get(part.name)))]
    surplus = stored.keys() - {part.name for part in parts} - ignored
    problems += [f"surplus {stored[name]}" for name in sorted(surplus)]
    for name, group in weights.items():
        dtypes = {stored[part.name].dtype for part in group if part.name in stored}
        if len(dtypes) > 1:
            problems.append(f"the parts of '{name}' have different types: {', '.join(sorted(dtypes))}")
    if problems:
        raise CheckpointError(_report(problems))
    table = _core.WeightTable()
    for name, group in weights.items():
        tensors = [stored[part.name] for part in group]
        shape = [sum(part.shape[0] for part in group), *group[0].shape[1:]]
        table.add(name, tensors[0].dtype, shape, [(str(t.path), t.offset, t.num_bytes) for t in tensors])
    return table


def _part_problem(part: Part, tensor: StoredTensor | None) -> str | None:
    if tensor is None:
        return f"missing '{part.name}' {list(part.shape)}"
    if tensor.shape != part.shape:
        return f"{tensor}, expected shape {list(part.shape)}"
    return None


def _report(problems: list[str], limit: int = 40) -> str:
    shown = problems[:limit] + ([f"and {len(problems) - limit} more"] if len(problems) > limit else [])
    return "the checkpoint does not fit the model's config.json:\n  " + "\n  ".join(shown)


def byte_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of this type and shape takes."""
    return DTYPE_BYTES[dtype] * math.prod(shape)
