"""``/generate`` and ``/generate_stream``, as MindIE and TGI have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_boost._request import RunningRequest
from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.outputs import RequestOutput, TextPiece
from llm_boost.sampling_params import SamplingParams
from llm_boost.serve.calls import EncodedPrompt, chosen, finite
from llm_boost.serve.fields import Fields
from llm_boost.serve.sampling import check_stops, make_params
from llm_boost.serve.settings import ServerSettings

_FIELDS = ("model", "inputs", "parameters", "stream")
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty", "seed", "do_sample")
_WARPERS = ("temperature", "top_k", "top_p")
_PARAMETERS = (*_SAMPLING, "max_new_tokens", "stop", "return_full_text", "details", "truncate", "grammar", "batch_size")
_DEFAULT_TOKENS = 20  # MindIE's
_GRAMMARS = {"json": "json", "regex": "regex"}


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A request to go on with a text."""

    inputs: str
    params: SamplingParams
    streams: bool
    details: bool
    return_full_text: bool
    truncate: int | None

    @staticmethod
    def from_body(
        body: Mapping[str, Any], model: Model, settings: ServerSettings, *, streams: bool | None = None
    ) -> GenerateCall:
        """Reads a body; `streams` is what the route says, else the body does.

        Raises:
            RequestError: A field is unknown, malformed or beyond the limits.
        """
        fields = Fields(body, _FIELDS)
        inputs = fields.text("inputs")
        if inputs is None:
            raise RequestError("inputs is missing, expected text")
        given = Fields(fields.mapping("parameters") or {}, _PARAMETERS, where="parameters.")
        # As TGI has it: what shapes the choice among tokens asks for one.
        values = {"do_sample": any(name in given for name in _WARPERS)} | given.pick(_SAMPLING)
        stop = given.get("stop") or []
        if not isinstance(stop, list):
            raise RequestError("parameters.stop: expected a list of strings")
        check_stops("parameters.stop", stop, settings)
        grammar = given.mapping("grammar")
        if grammar is not None:
            kind = _GRAMMARS.get(str(grammar.get("type")))
            if kind is None:
                raise RequestError(
                    f"parameters.grammar.type is {ascii(grammar.get('type'))[:40]}, expected json or regex"
                )
            values["structured_outputs"] = {kind: grammar.get("value")}
        params = make_params(
            values
            | {
                "max_tokens": given.integer("max_new_tokens", _DEFAULT_TOKENS, 1, (1 << 31) - 1),
                "stop": stop,
                "logprobs": 0,  # every token comes with its own
            }
        )
        return GenerateCall(
            inputs=inputs,
            params=params,
            streams=fields.boolean("stream") if streams is None else streams,
            details=given.boolean("details"),
            return_full_text=given.boolean("return_full_text"),
            truncate=given.integer("truncate", None, 1, (1 << 31) - 1),
        )

    @property
    def num_prompts(self) -> int:
        """One."""
        return 1

    def encode(self, model: Model) -> list[EncodedPrompt]:
        """Tokenizes the text."""
        token_ids = model.tokenizer.encode(self.inputs)
        return [EncodedPrompt(self.inputs, token_ids if self.truncate is None else token_ids[-self.truncate :])]

    def response(self, model: Model, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The answer's body, from the finished output."""
        sample = outputs[0].outputs[0]
        body: dict[str, Any] = {"generated_text": self._lead() + sample.text}
        if self.details:
            tokens = [
                _token(model, token, entry)
                for token, entry in zip(sample.token_ids, sample.logprobs or (), strict=True)
            ]
            body["details"] = self._details(sample.finish_reason, sample.stop_reason, len(tokens)) | {"tokens": tokens}
        return body

    def _lead(self) -> str:
        return self.inputs if self.return_full_text else ""

    def _details(self, reason: str | None, stop: int | str | None, count: int) -> dict[str, Any]:
        if reason == "stop":
            reason = "stop_sequence" if isinstance(stop, str) else "eos_token"
        return {"finish_reason": reason, "generated_tokens": count, "seed": self.params.seed, "prefill": []}

    def writer(self, model: Model) -> _Writer:
        """For one streamed answer."""
        return _Writer(self, model)


class _Writer:
    """Turns pieces into events: one a token."""

    terminator = b""

    def __init__(self, call: GenerateCall, model: Model) -> None:
        self._call = call
        self._model = model
        self._text: list[str] = []
        self._count = 0

    def piece(self, index: int, request: RunningRequest, piece: TextPiece) -> dict[str, Any] | None:
        """The event for a piece."""
        self._text.append(piece.text)
        self._count += len(piece.token_ids)
        token = None
        if piece.token_ids:
            token = _token(self._model, piece.token_ids[0], (piece.logprobs or ({},))[0]) | {"text": piece.text}
        ended = piece.finish_reason is not None
        call = self._call
        return {
            "index": self._count,
            "token": token,
            "generated_text": call._lead() + "".join(self._text) if ended else None,
            "details": call._details(piece.finish_reason, piece.stop_reason, self._count) if ended else None,
        }

    def end(self, requests: Sequence[RunningRequest]) -> list[dict[str, Any]]:
        """Nothing follows the last piece."""
        return []


def _token(model: Model, token: int, entry: Mapping[int, Any]) -> dict[str, Any]:
    own = chosen(dict(entry))[1]
    return {
        "id": token,
        "text": own.decoded_token,
        "logprob": finite(own.logprob),
        "special": token in model.tokenizer.special_ids,
    }
