"""How tokens are chosen, and when a generation ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llm_boost import _core
from llm_boost._suggest import unknown_name
from llm_boost.errors import RequestError
from llm_boost.structured_outputs import StructuredOutputsParams

# Hugging Face's name -> the name here.
_ALIASES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
}
_OPTIONAL = ("max_tokens", "seed", "logit_bias", "logprobs", "prompt_logprobs", "structured_outputs")
_INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True, init=False)
class SamplingParams:
    """Parameters of one request, under the names that vLLM uses.

    The Hugging Face names ``max_new_tokens``, ``min_new_tokens``, ``num_return_sequences``, ``stop_strings`` and
    ``do_sample`` are accepted too; ``do_sample=False`` means ``temperature=0``. Penalties and filters have the
    semantics of Hugging Face transformers and are applied in its order: logit_bias, repetition, presence and frequency
    penalties, min_tokens, temperature, top_k, top_p, min_p.

    Attributes:
        n: Number of independent samples of the prompt.
        max_tokens: Most tokens of a sample; None for as many as the context holds.
        min_tokens: No sample ends before it has so many tokens.
        temperature: Logits are divided by it; 0 is greedy.
        top_k: Only the k most likely tokens are considered; 0 or -1 for all of them.
        top_p: Only the smallest set of most likely tokens whose probabilities sum to at least this.
        min_p: Only tokens at least this times as likely as the most likely one.
        repetition_penalty: Divides positive and multiplies negative logits of tokens in the prompt or the output.
        presence_penalty: Subtracted from the logits of tokens in the output, -2 to 2.
        frequency_penalty: Likewise, times the number of occurrences.
        seed: Makes the samples repeatable; None for fresh ones.
        stop: Strings that end a sample; they are not part of its text.
        stop_token_ids: Tokens that end a sample, besides the model's own.
        include_stop_str_in_output: Keep the stop string in the text.
        ignore_eos: Go on after an end-of-text token.
        skip_special_tokens: Leave special tokens out of the text.
        logit_bias: Added to the logits of the given token ids.
        logprobs: Return the log probabilities of this many most likely tokens, and of the chosen one; None for none.
        prompt_logprobs: Likewise for every token of the prompt.
        structured_outputs: What form the output must have: `StructuredOutputsParams`, or its fields as a mapping.

    Raises:
        RequestError: A name is unknown, two names contradict each other, or a value has the wrong type. Ranges are
            checked when the request is made.

    Example:
        >>> SamplingParams(temperature=0, max_new_tokens=8).max_tokens
        8
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            n: int = 1,
            max_tokens: int | None = 16,
            min_tokens: int = 0,
            temperature: float = 1.0,
            top_k: int = 0,
            top_p: float = 1.0,
            min_p: float = 0.0,
            repetition_penalty: float = 1.0,
            presence_penalty: float = 0.0,
            frequency_penalty: float = 0.0,
            seed: int | None = None,
            stop: str | Sequence[str] = (),
            stop_token_ids: Sequence[int] = (),
            include_stop_str_in_output: bool = False,
            ignore_eos: bool = False,
            skip_special_tokens: bool = True,
            logit_bias: Mapping[int, float] | None = None,
            logprobs: int | None = None,
            prompt_logprobs: int | None = None,
            structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None,
            do_sample: bool = True,
            max_new_tokens: int = ...,
            min_new_tokens: int = ...,
            num_return_sequences: int = ...,
            stop_strings: str | Sequence[str] = ...,
        ) -> None: ...

    else:

        def __init__(self, **values: Any) -> None:
            known = {field.name: field for field in fields(type(self))}
            given = _resolve_aliases(values, known.keys())
            for name, field in known.items():
                value = _check(name, given[name]) if name in given else field.default
                object.__setattr__(self, name, value)

    def to_core(self, max_tokens: int) -> _core.SamplingParams:
        """The core's record of these parameters, `max_tokens` standing in for None."""
        core = _core.SamplingParams()
        core.n = self.n
        core.max_tokens = max_tokens if self.max_tokens is None else self.max_tokens
        core.min_tokens = self.min_tokens
        core.temperature = self.temperature
        core.top_k = max(self.top_k, 0)
        core.top_p = self.top_p
        core.min_p = self.min_p
        core.repetition_penalty = self.repetition_penalty
        core.presence_penalty = self.presence_penalty
        core.frequency_penalty = self.frequency_penalty
        core.seed = self.seed
        core.ignore_eos = self.ignore_eos
        core.stop_token_ids = list(self.stop_token_ids)
        core.logit_bias = list((self.logit_bias or {}).items())
        core.logprobs = -1 if self.logprobs is None else self.logprobs
        core.prompt_logprobs = -1 if self.prompt_logprobs is None else self.prompt_logprobs
        return core


def _resolve_aliases(values: Mapping[str, Any], known: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in values.items():
        target = _ALIASES.get(name, name)
        if name == "do_sample":
            continue
        if target not in known:
            raise RequestError(unknown_name("sampling parameter", name, [*known, *_ALIASES, "do_sample"]))
        if target in given:
            raise RequestError(f"{target} is given twice, also as {name}; give one of them")
        given[target] = value
    if "do_sample" in values:
        if type(values["do_sample"]) is not bool:
            raise RequestError(f"do_sample is {values['do_sample']!r:.40}, expected True or False")
        if not values["do_sample"]:
            given["temperature"] = 0.0
    return given


def _check(name: str, value: Any) -> Any:
    """Returns `value` with the type that the parameter has, or raises RequestError."""
    if value is None and name in _OPTIONAL:
        return None
    if name == "structured_outputs":
        return StructuredOutputsParams.from_value(value)
    if name == "stop":
        return _strings(name, value)
    if name == "stop_token_ids":
        return tuple(_integer(name, item) for item in _sequence(name, value))
    if name == "logit_bias":
        return _logit_bias(value)
    if name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
        if type(value) is not bool:
            raise RequestError(f"{name} is {value!r:.40}, expected True or False")
        return value
    if name == "seed":
        return _integer(name, value, low=-(1 << 63), high=(1 << 63) - 1) % (1 << 64)
    if name == "top_k":
        return _integer(name, value, low=-1)
    if name in ("n", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"):
        return _integer(name, value, low=0)
    return _number(name, value)


def _integer(name: str, value: Any, low: int = 0, high: int = _INT32_MAX) -> int:
    try:
        number = value.__index__()
    except (AttributeError, TypeError):
        number = None
    if not isinstance(number, int) or isinstance(value, bool) or not low <= number <= high:
        raise RequestError(f"{name} is {value!r:.40}, expected an integer from {low} to {high}")
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, (bool, str, bytes)) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{name} is {value!r:.40}, expected a finite number")
    return number


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise RequestError(f"{name} is {value!r:.40}, expected a list")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else list(_sequence(name, value))
    if not all(isinstance(item, str) for item in strings):
        raise RequestError(f"{name} is {value!r:.100}, expected strings")
    return tuple(strings)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias is {value!r:.40}, expected a mapping from token id to number")
    return {
        _integer("a token id of logit_bias", token): _number(f"logit_bias of {token}", bias)
        for token, bias in value.items()
    }
