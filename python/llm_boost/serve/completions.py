"""``/v1/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llm_boost._request import RunningRequest
from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.outputs import CompletionOutput, RequestOutput, TextPiece, TokenLogprobs
from llm_boost.sampling_params import SamplingParams
from llm_boost.serve.calls import (
    CallHead,
    EncodedPrompt,
    alternatives,
    chosen,
    finite,
    prompt_logprobs_json,
    usage,
)
from llm_boost.serve.fields import Fields
from llm_boost.serve.sampling import SAMPLING_FIELDS, make_params, sampling_values
from llm_boost.serve.settings import ServerSettings
from llm_boost.serve.streaming import DONE
from llm_boost.text._utf8 import require_utf8

_FIELDS = (
    *CallHead.FIELDS, *SAMPLING_FIELDS,
    "prompt", "max_tokens", "logprobs", "prompt_logprobs", "echo", "add_special_tokens", "response_format",
)  # fmt: skip
_DEFAULT_TOKENS = 16  # OpenAI's
_KIND = "text_completion"
_Result = TypeVar("_Result", CompletionOutput, TextPiece)


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """A request to go on with prompts.

    Attributes:
        head: Common fields.
        prompts: Texts or token ids.
        params: For each prompt. With `max_tokens` 0, which asks about the prompt alone, one token is computed and
            dropped.
        echo: The answer begins with the prompt.
        drops_output: `max_tokens` was 0.
        add_special_tokens: Put what the model wants around a text, such as a BOS token.
        shows_prompt_logprobs: The field ``prompt_logprobs`` was given.
    """

    head: CallHead
    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams
    echo: bool
    drops_output: bool
    add_special_tokens: bool
    shows_prompt_logprobs: bool

    @staticmethod
    def from_body(body: Mapping[str, Any], model: Model, settings: ServerSettings) -> CompletionCall:
        """Reads a body.

        Raises:
            RequestError: A field is unknown, malformed or beyond the limits.
        """
        fields = Fields(body, _FIELDS)
        head = CallHead.read(fields, "cmpl", settings.served_model_names[0])
        echo = fields.boolean("echo")
        max_tokens = fields.integer("max_tokens", _DEFAULT_TOKENS, 0 if echo else 1, (1 << 31) - 1)
        logprobs = fields.integer("logprobs", None, 0, settings.max_logprobs)
        prompt_logprobs = fields.integer("prompt_logprobs", None, 0, settings.max_logprobs)
        values = sampling_values(fields, model, settings) | {"max_tokens": max_tokens or 1, "logprobs": logprobs}
        values["prompt_logprobs"] = logprobs if echo and prompt_logprobs is None else prompt_logprobs
        return CompletionCall(
            head=head,
            prompts=_prompts(fields.get("prompt"), settings.max_prompts),
            params=make_params(values),
            echo=echo,
            drops_output=max_tokens == 0,
            add_special_tokens=fields.boolean("add_special_tokens", default=True),
            shows_prompt_logprobs=prompt_logprobs is not None,
        )

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.head.streams

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    def encode(self, model: Model) -> list[EncodedPrompt]:
        """Tokenizes the prompts."""
        return [self._encoded(prompt, model) for prompt in self.prompts]

    def _encoded(self, prompt: str | tuple[int, ...], model: Model) -> EncodedPrompt:
        if isinstance(prompt, str):
            token_ids = model.tokenizer.encode(prompt, add_special_tokens=self.add_special_tokens)
            return EncodedPrompt(prompt if self.head.truncate is None else None, self.head.cut(token_ids))
        return EncodedPrompt(None, self.head.cut(prompt))

    def response(self, model: Model, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The answer's body, from one finished output a prompt, in order."""
        choices = []
        for index, output in enumerate(outputs):
            choices += [self._choice(model, index, output, sample) for sample in output.outputs]
        return self.head.envelope(_KIND, choices) | {"usage": usage(outputs, drop_output=self.drops_output)}

    def _choice(self, model: Model, index: int, output: RequestOutput, sample: CompletionOutput) -> dict[str, Any]:
        if self.drops_output:
            sample = _without_output(sample)
        lead = self._lead(model, output.prompt, output.prompt_token_ids) if self.echo else ""
        logprobs = None
        if sample.logprobs is not None:
            table = _LogprobTable(model, self.params.logprobs or 0)
            if self.echo:
                table.add(output.prompt_token_ids, output.prompt_logprobs or ())
            table.add(sample.token_ids, sample.logprobs)
            logprobs = table.take()
        choice: dict[str, Any] = {
            "index": index * self.params.n + sample.index,
            "text": lead + sample.text,
            "logprobs": logprobs,
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop_reason,
        }
        if self.shows_prompt_logprobs:
            choice["prompt_logprobs"] = prompt_logprobs_json(output.prompt_logprobs)
        if self.head.return_token_ids:
            choice |= {"token_ids": list(sample.token_ids), "prompt_token_ids": list(output.prompt_token_ids)}
        return choice

    def _lead(self, model: Model, text: str | None, token_ids: Sequence[int]) -> str:
        return model.tokenizer.decode(token_ids, skip_special_tokens=False) if text is None else text

    def writer(self, model: Model) -> _Writer:
        """For one streamed answer."""
        return _Writer(self, model)


class _Writer:
    """Turns pieces into events."""

    terminator = DONE

    def __init__(self, call: CompletionCall, model: Model) -> None:
        self._call = call
        self._model = model
        self._tables: dict[int, _LogprobTable] = {}  # by choice; having one means that the choice has begun

    def piece(self, index: int, request: RunningRequest, piece: TextPiece) -> dict[str, Any] | None:
        """The event for a piece of the request with this index; None when it says nothing."""
        call = self._call
        piece = _without_output(piece) if call.drops_output else piece
        number = index * call.params.n + piece.index
        begins = number not in self._tables
        table = self._tables.setdefault(number, _LogprobTable(self._model, call.params.logprobs or 0))
        text = piece.text
        if begins and call.echo:
            text = call._lead(self._model, request.prompt, request.prompt_token_ids) + text
            if piece.logprobs is not None:
                table.add(request.prompt_token_ids, request.prompt_logprobs)
        if piece.logprobs is not None:
            table.add(piece.token_ids, piece.logprobs)
        if not text and piece.finish_reason is None and not piece.logprobs and not call.head.return_token_ids:
            return None
        choice: dict[str, Any] = {
            "index": number,
            "text": text,
            "logprobs": None if piece.logprobs is None else table.take(),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if begins and call.shows_prompt_logprobs:
            choice["prompt_logprobs"] = prompt_logprobs_json(request.prompt_logprobs)
        if call.head.return_token_ids:
            choice["token_ids"] = list(piece.token_ids)
            if begins:
                choice["prompt_token_ids"] = list(request.prompt_token_ids)
        return call.head.event(_KIND, choice, [request], drop_output=call.drops_output)

    def end(self, requests: Sequence[RunningRequest]) -> list[dict[str, Any]]:
        """What follows the last piece."""
        return self._call.head.last_events(_KIND, requests, drop_output=self._call.drops_output)


def _without_output(result: _Result) -> _Result:
    """What is left where `max_tokens` was 0."""
    logprobs: tuple[TokenLogprobs, ...] | None = None if result.logprobs is None else ()
    return replace(result, text="", token_ids=(), logprobs=logprobs, finish_reason="length", stop_reason=None)


class _LogprobTable:
    """Log probabilities as columns, the way completions give them."""

    def __init__(self, model: Model, num_top: int) -> None:
        self._model = model
        self._num_top = num_top
        self._offset = 0
        self._columns = self._empty()

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> None:
        """Adds tokens; None is the entry of a prompt's first token, which nothing precedes."""
        for token, entry in zip(token_ids, entries, strict=True):
            if entry is None:
                text = self._model.tokenizer.token_bytes(token).decode("utf-8", "replace")
                self._append(text, None, None)
                continue
            own = chosen(entry)[1]
            top = {value.decoded_token: finite(value.logprob) for _, value in alternatives(entry, self._num_top)[::-1]}
            top.setdefault(own.decoded_token, finite(own.logprob))
            self._append(own.decoded_token, finite(own.logprob), top)

    def _append(self, text: str, logprob: float | None, top: dict[str, float] | None) -> None:
        self._columns["tokens"].append(text)
        self._columns["token_logprobs"].append(logprob)
        self._columns["top_logprobs"].append(top)
        self._columns["text_offset"].append(self._offset)
        self._offset += len(text)

    def take(self) -> dict[str, list[Any]]:
        """The columns since the last call."""
        columns, self._columns = self._columns, self._empty()
        return columns


def _prompts(value: object, limit: int) -> tuple[str | tuple[int, ...], ...]:
    """A text, token ids, or a list of either."""
    if isinstance(value, str):
        return (require_utf8(value, "prompt"),)
    if not isinstance(value, list) or not value:
        raise RequestError(f"prompt is {ascii(value)[:40]}, expected text, token ids, or a list of these")
    if isinstance(value[0], int):
        return (_token_ids(value, "prompt"),)
    if len(value) > limit:
        raise RequestError(f"prompt has {len(value)} prompts, expected at most {limit}")
    return tuple(
        require_utf8(item, f"prompt[{i}]") if isinstance(item, str) else _token_ids(item, f"prompt[{i}]")
        for i, item in enumerate(value)
    )


def _token_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 31 for item in value):
        raise RequestError(f"{where}: expected text or a list of token ids, found {ascii(value)[:40]}")
    return tuple(value)
