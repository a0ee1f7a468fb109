"""Reading the JSON bodies of requests: typed, and strict about what would change the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_boost._suggest import unknown_name
from llm_boost.errors import RequestError
from llm_boost.text._utf8 import require_utf8

# What OpenAI clients send along and what has no bearing on the tokens: ignored.
IGNORED = frozenset(
    {
        "metadata", "parallel_tool_calls", "prediction", "priority", "prompt_cache_key", "prompt_cache_retention",
        "request_id", "safety_identifier", "service_tier", "store", "user", "verbosity", "cache_salt", "timeout",
    }
)  # fmt: skip

# What would change the result and is not offered, with the values that mean "without": refused otherwise.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "adapter_id": (None,),
    "allowed_token_ids": (None, []),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "decoder_input_details": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "length_penalty": (None, 1, 1.0),
    "modalities": (None, ["text"]),
    "reasoning_effort": (None,),
    "spaces_between_special_tokens": (None, True),
    "suffix": (None, ""),
    "top_n_tokens": (None, 0),
    "typical_p": (None, 1, 1.0),
    "use_beam_search": (None, False),
    "watermark": (None, False),
    "web_search_options": (None,),
}


class Fields:
    """The fields of a JSON object; null counts as absent."""

    def __init__(self, values: Mapping[str, Any], known: Iterable[str], *, where: str = "") -> None:
        """Takes the object.

        Args:
            values: The object.
            known: The fields that will be read.
            where: What its name begins with in messages, such as ``"parameters."``.

        Raises:
            RequestError: A field is unknown, or asks for what is not offered.
        """
        names = frozenset(known)
        for name, value in values.items():
            if name in names or name in IGNORED:
                continue
            if name not in _UNSUPPORTED:
                require_utf8(name, "the name of a field")
                raise RequestError(f"{where}{name:.100}: {unknown_name('field', name[:100], names)}")
            if value not in _UNSUPPORTED[name]:
                raise RequestError(f"{where}{name} is {_shown(value)}, but this server does not offer it; leave it out")
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> Any:
        """The value as it is, or None."""
        return self._values.get(name)

    def pick(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of some fields that are there."""
        return {name: self._values[name] for name in names if name in self._values}

    def boolean(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number in a range."""
        value = self._values.get(name, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            raise self._wrong(name, value, f"an integer from {low} to {high}")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string."""
        value = self._values.get(name, default)
        return None if value is None else require_utf8(value, self._where + name)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """An object."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return value

    def mappings(self, name: str) -> Sequence[Mapping[str, Any]] | None:
        """A list of objects."""
        value = self._values.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise self._wrong(name, value, "a list of objects")
        return value

    def _wrong(self, name: str, value: object, expected: str) -> RequestError:
        return RequestError(f"{self._where}{name} is {_shown(value)}, expected {expected}")


def _shown(value: object) -> str:
    return ascii(value)[:60]
