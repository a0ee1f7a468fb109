"""What the routes that generate have in common: a parsed body, its prompts, its answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llm_boost import __version__
from llm_boost._request import RunningRequest
from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.outputs import Logprob, RequestOutput, TextPiece, TokenLogprobs
from llm_boost.sampling_params import SamplingParams
from llm_boost.serve.fields import Fields

_LEAST_LOGPROB = -9999.0  # JSON has no infinity
SYSTEM_FINGERPRINT = f"llm_boost-{__version__}"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids, and as text where it was given so."""

    text: str | None
    token_ids: Sequence[int]


class StreamWriter(Protocol):
    """Turns the pieces of one answer into the objects of its event stream."""

    terminator: bytes  # after the last event

    def piece(self, index: int, request: RunningRequest, piece: TextPiece) -> dict[str, Any] | None:
        """The event for a piece of the request with this index; None when it says nothing."""

    def end(self, requests: Sequence[RunningRequest]) -> list[dict[str, Any]]:
        """What follows the last piece."""


class Call(Protocol):
    """A parsed body of a route that generates. Immutable."""

    @property
    def params(self) -> SamplingParams:
        """For all prompts."""

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""

    def encode(self, model: Model) -> list[EncodedPrompt]:
        """Renders and tokenizes the prompts; takes a while. Raises RequestError or ChatTemplateError."""

    def response(self, model: Model, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The answer's body, from one finished output a prompt, in order."""

    def writer(self, model: Model) -> StreamWriter:
        """For one streamed answer."""


@dataclass(frozen=True, slots=True)
class CallHead:
    """What every call of the OpenAI API carries."""

    id: str
    model: str
    streams: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    truncate: int | None
    created: int = field(default_factory=lambda: int(time.time()))

    FIELDS = ("model", "stream", "stream_options", "return_token_ids", "truncate_prompt_tokens")

    @staticmethod
    def read(fields: Fields, prefix: str, model: str) -> CallHead:
        """Reads the common fields; `model` is the name that answers give."""
        options = Fields(
            fields.mapping("stream_options") or {},
            ("include_usage", "continuous_usage_stats", "include_obfuscation"),
            where="stream_options.",
        )
        streams = fields.boolean("stream")
        if "stream_options" in fields and not streams:
            raise RequestError("stream_options needs stream to be true")
        return CallHead(
            id=f"{prefix}-{uuid.uuid4().hex}",
            model=model,
            streams=streams,
            include_usage=options.boolean("include_usage"),
            continuous_usage=options.boolean("continuous_usage_stats"),
            return_token_ids=fields.boolean("return_token_ids"),
            truncate=fields.integer("truncate_prompt_tokens", None, 1, (1 << 31) - 1),
        )

    def envelope(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An answer or an event around its choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
        }

    def event(
        self, kind: str, choice: dict[str, Any], requests: Sequence[RunningRequest], *, drop_output: bool = False
    ) -> dict[str, Any]:
        """An event of a stream with one choice."""
        event = self.envelope(kind, [choice])
        if self.include_usage:
            event["usage"] = running_usage(requests, drop_output=drop_output) if self.continuous_usage else None
        return event

    def last_events(
        self, kind: str, requests: Sequence[RunningRequest], *, drop_output: bool = False
    ) -> list[dict[str, Any]]:
        """What follows the last choice of a stream."""
        if not self.include_usage:
            return []
        return [self.envelope(kind, []) | {"usage": running_usage(requests, drop_output=drop_output)}]

    def cut(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The end of a prompt, where the body says so."""
        return token_ids if self.truncate is None else token_ids[-self.truncate :]


def usage(outputs: Sequence[RequestOutput], *, drop_output: bool = False) -> dict[str, Any]:
    """The usage object of finished outputs."""
    output_tokens = 0 if drop_output else sum(len(s.token_ids) for output in outputs for s in output.outputs)
    return _usage(
        sum(len(output.prompt_token_ids) for output in outputs),
        output_tokens,
        sum(output.num_cached_tokens for output in outputs),
    )


def running_usage(requests: Sequence[RunningRequest], *, drop_output: bool = False) -> dict[str, Any]:
    """The usage object of requests as far as they are."""
    return _usage(
        sum(len(request.prompt_token_ids) for request in requests),
        0 if drop_output else sum(request.num_output_tokens for request in requests),
        sum(request.num_cached_tokens for request in requests),
    )


def _usage(prompt: int, output: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chosen(entry: TokenLogprobs) -> tuple[int, Logprob]:
    """The token that is there, which comes first."""
    return next(iter(entry.items()))


def alternatives(entry: TokenLogprobs, count: int) -> list[tuple[int, Logprob]]:
    """The `count` most likely tokens."""
    return sorted(entry.items(), key=lambda item: item[1].rank)[:count]


def finite(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)


def prompt_logprobs_json(entries: Sequence[TokenLogprobs | None] | None) -> list[dict[str, Any] | None] | None:
    """Prompt log probabilities as vLLM gives them: by token id."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {"logprob": finite(value.logprob), "rank": value.rank, "decoded_token": value.decoded_token}
            for token, value in entry.items()
        }
        for entry in entries
    ]
