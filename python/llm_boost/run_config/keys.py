"""What a key of a run config may hold: parsers, and dataclass fields that carry one with the key's meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from llm_boost._suggest import unknown_name

# Takes a plain YAML value and returns what the field holds, or raises ValueError that says what was expected.
Parser = Callable[[Any], Any]

_MAX_INT = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A mapping of a run config.

    Its fields are made by `key`, and None where the file has no such key; a field whose default_factory is a section
    is a mapping inside this one.

    Attributes:
        UNUSED: Keys that are accepted and have no effect here -> why.
    """

    UNUSED: ClassVar[Mapping[str, str]] = {}


def key(parse: Parser, meaning: str) -> Any:
    """A field for a key: how its value is checked, and what it means, for the reference page."""
    return field(default=None, metadata={"parse": parse, "meaning": meaning})


def subsections(kind: type[Section]) -> dict[str, type[Section]]:
    """The mappings inside a section, by name."""
    found: dict[str, type[Section]] = {}
    for item in fields(kind):
        factory: Any = item.default_factory
        if isinstance(factory, type) and issubclass(factory, Section):
            found[item.name] = factory
    return found


def unused(**groups: str) -> dict[str, str]:
    """Keys without effect: ``unused(reason_name="key key ...")`` with the reasons of `_REASONS`."""
    return {name: _REASONS[reason] for reason, names in groups.items() for name in names.split()}


_REASONS = {
    "training": "matters for training only",
    "graph": "tunes MindSpore's compiler or runtime, which is not used here",
    "cluster": "matters for more than one device only",
    "remote": "uploads and remote code are not supported, on purpose",
    "reader": "the reader finds this out from the checkpoint itself",
    "precision": "norms, softmax and sums are float32 here",
    "original": "had no effect in the original either",
}


def integer(low: int, high: int = _MAX_INT) -> Parser:
    """An integer from `low` to `high`."""

    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}")
        return value

    return parse


def number(low: float, high: float, *, above: bool = False) -> Parser:
    """A number from `low` to `high`; greater than `low` if `above`."""

    def parse(value: Any) -> float:
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number or not low <= value <= high or (above and value == low):
            raise ValueError(f"expected a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return parse


def boolean(value: Any) -> bool:
    """True or False."""
    if type(value) is not bool:
        raise ValueError("expected True or False")
    return value


def text(value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError("expected text or a list of texts")
    return tuple(items)


def choice(*names: str) -> Parser:
    """One of some names; capitals do not matter, and the name comes out as it is listed."""

    def parse(value: Any) -> str:
        matches = [name for name in names if isinstance(value, str) and value.lower() == name.lower()]
        if not matches:
            hint = unknown_name("value", value, names, list_known=False) if isinstance(value, str) else ""
            _, _, near = hint.partition("; ")
            raise ValueError(f"expected one of {', '.join(names)}" + (f"; {near}" if near else ""))
        return matches[0]

    return parse


def only(expected: Any, because: str) -> Parser:
    """One value; any other is refused with the reason."""

    def parse(value: Any) -> Any:
        if type(value) is not type(expected) or value != expected:
            raise ValueError(f"expected {expected!r}: {because}")
        return value

    return parse


def token_id(value: Any) -> int:
    """The id of a token."""
    if type(value) is not int or not 0 <= value < _MAX_INT:
        raise ValueError("expected a token id")
    return value


def token_ids(value: Any) -> tuple[int, ...]:
    """The id of a token, or a list of them."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(type(item) is int and 0 <= item < _MAX_INT for item in items):
        raise ValueError("expected a token id or a list of token ids")
    return tuple(items)


def scaling(value: Any) -> Any:
    """A number, or a mapping of settings, which are checked together with the method."""
    if isinstance(value, dict):
        return value
    return {"factor": number(0, 1e6, above=True)(value)}
