"""JSON files from a model directory: untrusted, so limited in size and checked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from llm_boost.errors import LlmBoostError


def read_json_object(path: Path, error: type[LlmBoostError], *, max_bytes: int = 16 << 20) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: The file.
        error: The exception type to raise when the file is missing, too large, or not a JSON object.
        max_bytes: The largest file that is accepted.

    Raises:
        LlmBoostError: Of the given type, naming the file and the reason.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise error(f"{path}: is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise error(f"{path}: has {size} bytes, expected at most {max_bytes}")
        return parse_json_object(path.read_bytes(), str(path), error)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem


def parse_json_object(data: bytes, where: str, error: type[LlmBoostError]) -> dict[str, Any]:
    """Parses bytes that must be a JSON object without duplicate keys; `where` starts the error message."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise error(f"{where}: has the key {ascii(twice)[:100]} twice")
        return found

    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except error:
        raise
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: is not valid JSON: {problem}") from problem
    if not isinstance(parsed, dict):
        raise error(f"{where}: is a JSON {type(parsed).__name__}, expected an object")
    return parsed
