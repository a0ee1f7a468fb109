"""What a generation gives: the shapes that vLLM users know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprob:
    """The log probability of a token under the model's own logits, before penalties and temperature.

    Attributes:
        logprob: Natural logarithm of the probability.
        rank: 1 for the most likely token.
        decoded_token: The token's text on its own.
    """

    logprob: float
    rank: int
    decoded_token: str


# For one position: the token that is there, and the most likely ones, by token id.
TokenLogprobs = dict[int, Logprob]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample of a request.

    Attributes:
        index: 0 to n - 1.
        text: The generated text.
        token_ids: The generated tokens, including an end-of-text or stop token.
        cumulative_logprob: Sum of the tokens' log probabilities, if they were asked for.
        logprobs: One entry a token, if they were asked for.
        finish_reason: "stop" at an end-of-text token, stop token or stop string; "length" at max_tokens or the end of
            the context; "abort" when it was cancelled.
        stop_reason: The stop string or stop token id that ended the sample; None for an end-of-text token.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times of a request in seconds; the clock starts when it is submitted."""

    time_to_first_token: float
    total_time: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request.

    Attributes:
        request_id: A name that is unique for the model.
        prompt: The prompt's text; None when it was given as token ids.
        prompt_token_ids: The prompt's tokens.
        prompt_logprobs: If they were asked for: None for the first token, then one entry a token.
        outputs: The samples, by index.
        finished: Always True: partial results come from `Model.stream`.
        num_cached_tokens: Tokens of the prompt that were found in the prefix cache.
        metrics: Times.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of a streamed generation; ``str(piece)`` is its text.

    Attributes:
        index: Of the sample, 0 to n - 1.
        text: New text that is final; may be empty.
        token_ids: New tokens, including those whose text is still held back.
        logprobs: One entry a token, if they were asked for.
        finish_reason: Set on the last piece of a sample; see `CompletionOutput`.
        stop_reason: See `CompletionOutput`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: str | None
    stop_reason: int | str | None

    def __str__(self) -> str:
        return self.text
