"""``/v1/chat/completions``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_boost._request import RunningRequest
from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.outputs import CompletionOutput, RequestOutput, TextPiece, TokenLogprobs
from llm_boost.sampling_params import SamplingParams
from llm_boost.serve.calls import CallHead, EncodedPrompt, alternatives, chosen, finite, usage
from llm_boost.serve.fields import Fields
from llm_boost.serve.sampling import SAMPLING_FIELDS, make_params, sampling_values
from llm_boost.serve.settings import ServerSettings
from llm_boost.serve.streaming import DONE

CHAT_FIELDS = (
    "messages", "tools", "tool_choice", "documents", "add_generation_prompt", "continue_final_message",
    "chat_template_kwargs",
)  # fmt: skip
_FIELDS = (
    *CallHead.FIELDS, *SAMPLING_FIELDS, *CHAT_FIELDS,
    "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format",
)  # fmt: skip
_KIND = "chat.completion"
_MAX_MESSAGES = 4096


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat, as the template takes it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    template_kwargs: Mapping[str, Any]

    @staticmethod
    def read(fields: Fields) -> ChatPrompt:
        """Reads `CHAT_FIELDS`."""
        messages = fields.mappings("messages")
        if not messages or len(messages) > _MAX_MESSAGES:
            count = "none" if not messages else len(messages)
            raise RequestError(f"messages: expected 1 to {_MAX_MESSAGES} messages, found {count}")
        tools = fields.mappings("tools") or None
        match fields.get("tool_choice"):
            case None | "auto":
                pass
            case "none":
                tools = None
            case other:
                raise RequestError(
                    f"tool_choice is {ascii(other)[:60]}, but this server offers auto and none; leave it out"
                )
        return ChatPrompt(
            messages=[_message(message, index) for index, message in enumerate(messages)],
            tools=tools,
            documents=fields.mappings("documents") or None,
            add_generation_prompt=fields.boolean("add_generation_prompt", not fields.boolean("continue_final_message")),
            continue_final_message=fields.boolean("continue_final_message"),
            template_kwargs=fields.mapping("chat_template_kwargs") or {},
        )

    def encode(self, model: Model) -> EncodedPrompt:
        """Renders the chat, in the template's own process, and tokenizes it."""
        text = model.tokenizer.chat.render(
            self.messages,
            tools=self.tools,
            documents=self.documents,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.template_kwargs,
        )
        return EncodedPrompt(text, model.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A request to answer a chat."""

    head: CallHead
    chat: ChatPrompt
    params: SamplingParams

    @staticmethod
    def from_body(body: Mapping[str, Any], model: Model, settings: ServerSettings) -> ChatCall:
        """Reads a body.

        Raises:
            RequestError: A field is unknown, malformed or beyond the limits.
        """
        fields = Fields(body, _FIELDS)
        head = CallHead.read(fields, "chatcmpl", settings.served_model_names[0])
        top_logprobs = fields.integer("top_logprobs", 0, 0, settings.max_logprobs)
        if top_logprobs and not fields.boolean("logprobs"):
            raise RequestError("top_logprobs needs logprobs to be true")
        limits = {fields.integer(name, None, 1, (1 << 31) - 1) for name in ("max_tokens", "max_completion_tokens")}
        limits.discard(None)
        if len(limits) > 1:
            raise RequestError("max_tokens and max_completion_tokens differ; give one of them")
        values = sampling_values(fields, model, settings) | {
            "max_tokens": next(iter(limits), None),
            "logprobs": top_logprobs if fields.boolean("logprobs") else None,
        }
        return ChatCall(head, ChatPrompt.read(fields), make_params(values))

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.head.streams

    @property
    def num_prompts(self) -> int:
        """One."""
        return 1

    def encode(self, model: Model) -> list[EncodedPrompt]:
        """Renders and tokenizes the chat."""
        prompt = self.chat.encode(model)
        return [prompt if self.head.truncate is None else EncodedPrompt(None, self.head.cut(prompt.token_ids))]

    def response(self, model: Model, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The answer's body, from the finished output."""
        (output,) = outputs
        body = self.head.envelope(_KIND, [self._choice(sample) for sample in output.outputs])
        if self.head.return_token_ids:
            body["prompt_token_ids"] = list(output.prompt_token_ids)
        return body | {"usage": usage(outputs)}

    def _choice(self, sample: CompletionOutput) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": sample.index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": self._logprobs(sample.logprobs),
            "finish_reason": sample.finish_reason,
            "stop_reason": sample.stop_reason,
        }
        if self.head.return_token_ids:
            choice["token_ids"] = list(sample.token_ids)
        return choice

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        return {"content": [_logprob(entry, self.params.logprobs or 0) for entry in entries], "refusal": None}

    def writer(self, model: Model) -> _Writer:
        """For one streamed answer."""
        return _Writer(self)


class _Writer:
    """Turns pieces into events."""

    terminator = DONE

    def __init__(self, call: ChatCall) -> None:
        self._call = call
        self._begun: set[int] = set()

    def piece(self, index: int, request: RunningRequest, piece: TextPiece) -> dict[str, Any] | None:
        """The event for a piece; None when it says nothing."""
        call = self._call
        begins = piece.index not in self._begun
        if not piece.text and piece.finish_reason is None and not piece.logprobs and not call.head.return_token_ids:
            return None
        self._begun.add(piece.index)
        choice: dict[str, Any] = {
            "index": piece.index,
            "delta": {"role": "assistant", "content": piece.text} if begins else {"content": piece.text},
            "logprobs": call._logprobs(piece.logprobs),
            "finish_reason": piece.finish_reason,
        }
        if piece.finish_reason is not None:
            choice["stop_reason"] = piece.stop_reason
        if call.head.return_token_ids:
            choice["token_ids"] = list(piece.token_ids)
        return call.head.event(_KIND + ".chunk", choice, [request])

    def end(self, requests: Sequence[RunningRequest]) -> list[dict[str, Any]]:
        """What follows the last piece."""
        return self._call.head.last_events(_KIND + ".chunk", requests)


def _logprob(entry: TokenLogprobs, num_top: int) -> dict[str, Any]:
    def shown(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

    own = chosen(entry)[1]
    top = [shown(value.decoded_token, value.logprob) for _, value in alternatives(entry, num_top)]
    return shown(own.decoded_token, own.logprob) | {"top_logprobs": top}


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A message as templates expect it: its content one text, the arguments of tool calls parsed."""
    where = f"messages[{index}]"
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{where}.role is {ascii(message.get('role'))[:40]}, expected text")
    plain = dict(message)
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise RequestError(f"{where}.content is missing, expected text or a list of text parts")
    if isinstance(content, list):
        plain["content"] = "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"{where}.content is {ascii(content)[:40]}, expected text or a list of text parts")
    if message.get("tool_calls") is not None:
        plain["tool_calls"] = _tool_calls(message["tool_calls"], f"{where}.tool_calls")
    return plain


def _part(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise RequestError(
        f'{where} is {ascii(part)[:60]}, expected {{"type": "text", "text": ...}}: this model reads text'
    )


def _tool_calls(calls: object, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise RequestError(f"{where} is {ascii(calls)[:40]}, expected a list")
    parsed = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                arguments = function["arguments"]
            call = {**call, "function": {**function, "arguments": arguments}}
        parsed.append(call)
    return parsed
