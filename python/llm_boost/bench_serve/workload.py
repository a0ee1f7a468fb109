"""What is sent to the server, and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_boost._json import parse_json_object
from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError

# For prompts that must be text. Short common words: one token each in most vocabularies.
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "hand")
_LINE_KEYS = ("prompt", "messages", "max_tokens")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A request that is ready to be sent.

    Attributes:
        payload: The JSON body.
        input_tokens: Length of the prompt as far as it is known here; the server's own count takes precedence.
    """

    payload: bytes
    input_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPrompts:
    """How to draw random prompts.

    Attributes:
        input_len: Tokens of a prompt, without the prefix.
        output_len: Tokens to ask for.
        range_ratio: Lengths are drawn evenly from ``length * (1 - ratio)`` to ``length * (1 + ratio)``.
        prefix_len: Tokens in front of each prompt that it shares with others.
        num_prefixes: How many different prefixes there are.
        token_ids: First and last token id that is drawn.

    Raises:
        ConfigError: A value cannot be used.
    """

    input_len: int = 128
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0
    num_prefixes: int = 1
    token_ids: tuple[int, int] = (1000, 20000)

    def __post_init__(self) -> None:
        for name, least in (("input_len", 1), ("output_len", 1), ("prefix_len", 0), ("num_prefixes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(f"range_ratio is {self.range_ratio}, expected 0 or more, and less than 1")
        if not 0 <= self.token_ids[0] <= self.token_ids[1]:
            raise ConfigError(f"token_ids is {self.token_ids}, expected the first and the last of a range")


def random_requests(
    spec: RandomPrompts, count: int, body: dict[str, Any], rng: np.random.Generator, *, chat: bool
) -> list[LoadRequest]:
    """Draws requests: prompts of token ids, or for a chat of words, as chats take no token ids.

    Args:
        spec: Lengths and ranges.
        count: How many.
        body: Fields that all requests have.
        rng: Where chance comes from.
        chat: Make bodies for ``/v1/chat/completions`` instead of ``/v1/completions``.

    Example:
        >>> spec = RandomPrompts(input_len=3, output_len=5, token_ids=(7, 7))
        >>> random_requests(spec, 1, {"stream": True}, np.random.default_rng(0), chat=False)[0].payload
        b'{"stream": true, "prompt": [7, 7, 7], "max_tokens": 5}'
    """
    low, high = spec.token_ids

    def tokens(length: int) -> list[int]:
        return [int(token) for token in rng.integers(low, high, length, endpoint=True)]

    def around(length: int) -> int:
        least, most = (round(length * (1 + sign * spec.range_ratio)) for sign in (-1, 1))
        return max(1, int(rng.integers(least, most, endpoint=True)))

    prefixes = [tokens(spec.prefix_len) for _ in range(spec.num_prefixes)]
    requests = []
    for _ in range(count):
        ids = prefixes[rng.integers(spec.num_prefixes)] + tokens(around(spec.input_len))
        text = " ".join(_WORDS[token % len(_WORDS)] for token in ids)
        prompt = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": ids}
        requests.append(_request({**body, **prompt, "max_tokens": around(spec.output_len)}, len(ids)))
    return requests


def file_requests(path: Path, count: int, body: dict[str, Any], output_len: int, *, chat: bool) -> list[LoadRequest]:
    """Reads requests from a file of JSON lines, from its beginning again when it has too few.

    A line is an object with ``prompt`` (text or token ids) or ``messages``, and maybe ``max_tokens``.

    Raises:
        ConfigError: The file cannot be read, or a line is wrong.
    """
    try:
        lines = [(at, line) for at, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not lines:
        raise ConfigError(f"{path}: has no lines, expected a JSON object in each")
    parsed = [_parse_line(line, f"{path}:{at}", chat=chat) for at, line in lines]
    return [_request({**body, "max_tokens": output_len, **parsed[index % len(parsed)]}, 0) for index in range(count)]


def _parse_line(line: bytes, where: str, *, chat: bool) -> dict[str, Any]:
    fields = parse_json_object(line, where, ConfigError)
    for name in fields.keys() - set(_LINE_KEYS):
        raise ConfigError(f"{where}: {unknown_name('key', name, _LINE_KEYS)}")
    if chat and isinstance(fields.get("prompt"), str):
        fields["messages"] = [{"role": "user", "content": fields.pop("prompt")}]
    needed = "messages" if chat else "prompt"
    if needed not in fields:
        raise ConfigError(
            f"{where}: has no '{needed}', which this endpoint needs; found: {', '.join(fields) or 'nothing'}"
        )
    return fields


def _request(body: dict[str, Any], input_tokens: int) -> LoadRequest:
    return LoadRequest(json.dumps(body).encode(), input_tokens)


def arrival_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> Sequence[float]:
    """Seconds from the start at which requests arrive.

    Args:
        count: How many.
        rate: Requests a second; infinity sends all at once.
        burstiness: Shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts, more is
            more even.
        rng: Where chance comes from.

    Raises:
        ConfigError: The rate or the burstiness is not positive.

    Example:
        >>> arrival_times(3, float("inf"), 1.0, np.random.default_rng(0))
        [0.0, 0.0, 0.0]
    """
    if not (rate > 0 and burstiness > 0):
        raise ConfigError(f"request rate is {rate} and burstiness {burstiness}, expected more than 0")
    gaps = rng.gamma(burstiness, 1 / (rate * burstiness), count)
    times: list[float] = (np.cumsum(gaps) - gaps[:1]).tolist()
    return times
