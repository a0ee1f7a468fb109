"""A request while it is being served: from the core's token events to text and results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_boost import _core
from llm_boost.errors import BackendError
from llm_boost.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, TextPiece, TokenLogprobs
from llm_boost.sampling_params import SamplingParams
from llm_boost.structured_outputs import Grammar, TokenConstraint
from llm_boost.text.detokenizer import StreamDetokenizer
from llm_boost.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Sample:
    """The growing result of one sample."""

    detokenizer: StreamDetokenizer | None
    constraint: TokenConstraint | None
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RunningRequest:
    """Collects the events of one request. Used by one thread."""

    def __init__(
        self,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        grammar: Grammar | None = None,
    ) -> None:
        self.prompt = prompt
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.params = params
        self._tokenizer = tokenizer
        self._samples = [
            _Sample(self._detokenizer(), None if grammar is None else grammar.start()) for _ in range(params.n)
        ]
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.num_cached_tokens = 0
        self.queue_seconds = 0.0
        self._first_mask = b""
        self._started = time.perf_counter()
        self._first_token_at: float | None = None
        self._ended_at = self._started

    def _detokenizer(self) -> StreamDetokenizer | None:
        if self._tokenizer is None:
            return None
        return StreamDetokenizer(
            self._tokenizer,
            skip_special_tokens=self.params.skip_special_tokens,
            continuation=True,
            stop=self.params.stop,
            include_stop_str_in_output=self.params.include_stop_str_in_output,
            min_tokens=self.params.min_tokens,
        )

    def check(self, core: _core.LoadedModel) -> None:
        """Raises RequestError unless `submit`, which comes next, will take the request."""
        core.check(self.prompt_token_ids, self._core_params(core))
        constraint = self._samples[0].constraint
        if constraint is not None:
            self._first_mask = constraint.mask()

    def submit(self, core: _core.LoadedModel, queue: _core.OutputQueue) -> int:
        """Gives the request to the core and returns its id there; its events come from `queue`."""
        self._core = core
        self._started = time.perf_counter()
        return core.submit(self.prompt_token_ids, self._core_params(core), queue, self._first_mask)

    def _core_params(self, core: _core.LoadedModel) -> _core.SamplingParams:
        room = core.info()["max_model_len"] - len(self.prompt_token_ids)
        return self.params.to_core(max_tokens=max(room, 1))

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all samples so far."""
        return sum(len(sample.token_ids) for sample in self._samples)

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...]:
        """Those that have come: None for the first token, then one entry a token."""
        return tuple(self._prompt_logprobs)

    @property
    def finished(self) -> bool:
        """Whether all samples have ended."""
        return all(sample.finish_reason is not None for sample in self._samples)

    def take(self, event: _core.TokenEvent) -> TextPiece | None:
        """Adds an event; returns the piece of text that it gives, None for what is not part of a sample.

        Raises:
            BackendError: The model's logits were not numbers.
            RequestError: The grammar of a structured output takes more work than its limits allow.
        """
        if event.prompt_position >= 0:
            self._prompt_logprobs.append(self._token_logprobs(event))
            return None
        sample = self._samples[event.sample]
        if sample.finish_reason is not None:  # ended by a stop string before the core knew
            return None
        if event.finish_reason == "error":
            raise BackendError(
                "the model gave logits that are not numbers; its weights may be damaged, "
                "or overflow: try activation_dtype='float32'"
            )
        now = time.perf_counter()
        if self._first_token_at is None:
            self._first_token_at = now
        self._ended_at = now
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        self.queue_seconds = event.queue_seconds
        if sample.constraint is not None and event.token >= 0 and not event.finish_reason:
            self._core.set_token_mask(event.request, event.sample, sample.constraint.next_mask(event.token))
        piece = self._advance(sample, event)
        if piece.finish_reason is not None and not event.finish_reason:  # by a stop string, which the core cannot see
            self._core.cancel(event.request, event.sample)
        return piece

    def _advance(self, sample: _Sample, event: _core.TokenEvent) -> TextPiece:
        text = ""
        new_tokens = (event.token,) if event.token >= 0 else ()
        new_logprobs = (self._token_logprobs(event),) if self.params.logprobs is not None and new_tokens else ()
        sample.token_ids += new_tokens
        sample.logprobs += new_logprobs
        if event.finish_reason:
            sample.finish_reason = event.finish_reason
            sample.stop_reason = event.stop_token if event.stop_token >= 0 else None
        if sample.detokenizer is not None:
            # The token that ends a text is not part of it, unless that was asked for.
            ends = event.finish_reason == "stop" and not self.params.include_stop_str_in_output
            text = sample.detokenizer.push(() if ends else new_tokens)
            if event.finish_reason:
                text += sample.detokenizer.flush()
            if sample.detokenizer.stop_match is not None:
                sample.finish_reason = "stop"
                sample.stop_reason = sample.detokenizer.stop_match.stop
        sample.text.append(text)
        logprobs = new_logprobs if self.params.logprobs is not None else None
        return TextPiece(event.sample, text, new_tokens, logprobs, sample.finish_reason, sample.stop_reason)

    def _token_logprobs(self, event: _core.TokenEvent) -> TokenLogprobs:
        return {token: Logprob(logprob, rank, self._decoded(token)) for token, logprob, rank in event.logprobs}

    def _decoded(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def result(self, request_id: str) -> RequestOutput:
        """The finished request."""
        first = self._ended_at if self._first_token_at is None else self._first_token_at
        return RequestOutput(
            request_id=request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=tuple(self._prompt_logprobs) if self.params.prompt_logprobs is not None else None,
            outputs=tuple(self._completion(index, sample) for index, sample in enumerate(self._samples)),
            finished=True,
            num_cached_tokens=self.num_cached_tokens,
            metrics=RequestMetrics(first - self._started, self._ended_at - self._started),
        )

    def _completion(self, index: int, sample: _Sample) -> CompletionOutput:
        logprobs = None if self.params.logprobs is None else tuple(sample.logprobs)
        cumulative = None
        if logprobs is not None:
            cumulative = sum(entry[token].logprob for token, entry in zip(sample.token_ids, logprobs, strict=True))
        return CompletionOutput(
            index=index,
            text="".join(sample.text),
            token_ids=tuple(sample.token_ids),
            cumulative_logprob=cumulative,
            logprobs=logprobs,
            finish_reason=sample.finish_reason,
            stop_reason=sample.stop_reason,
        )
