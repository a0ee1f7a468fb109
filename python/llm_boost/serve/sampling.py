"""From the fields of a request to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.sampling_params import SamplingParams
from llm_boost.serve.fields import Fields
from llm_boost.serve.settings import ServerSettings

# Fields of completions and chats that are sampling parameters of the same name.
SAMPLING_FIELDS = (
    "n", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "logit_bias", "structured_outputs",
)  # fmt: skip
# What a model's authors may recommend.
_RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MAX_BIAS = 100.0  # OpenAI's range, which decides a choice either way


def recommended(model: Model) -> dict[str, Any]:
    """What generation_config.json says about sampling, for requests that do not; the rest is as OpenAI has it."""
    return {name: value for name in _RECOMMENDED if (value := model.config.generation_defaults.get(name)) is not None}


def sampling_values(fields: Fields, model: Model, settings: ServerSettings) -> dict[str, Any]:
    """The values of `SAMPLING_FIELDS` that a request gives or leaves to the model.

    Raises:
        RequestError: A value is beyond the server's limits. Types and other ranges are checked later.
    """
    values = recommended(model) | fields.pick(SAMPLING_FIELDS)
    for name in ("stop", "stop_token_ids"):
        check_stops(name, values.get(name), settings)
    if "logit_bias" in values:
        values["logit_bias"] = _logit_bias(values["logit_bias"])
    form = response_format(fields.mapping("response_format"))
    if form is not None:
        if "structured_outputs" in values:
            raise RequestError("response_format and structured_outputs are both given; give one of them")
        values["structured_outputs"] = form
    return values


def check_stops(name: str, value: object, settings: ServerSettings) -> None:
    """Checks the number and the length of what ends a sample: every sample searches its text for all of them.

    Raises:
        RequestError: They are too many, or one is too long. Types are checked later.
    """
    stops = value if isinstance(value, list) else [value]
    if len(stops) > settings.max_stop_strings:
        raise RequestError(f"{name} has {len(stops)} elements, expected at most {settings.max_stop_strings}")
    longest = max((len(stop) for stop in stops if isinstance(stop, str)), default=0)
    if longest > settings.max_stop_chars:
        raise RequestError(f"{name} has a string of {longest} characters, expected at most {settings.max_stop_chars}")


def make_params(values: Mapping[str, Any]) -> SamplingParams:
    """`SamplingParams` of these values.

    Raises:
        RequestError: A value has the wrong type, or is out of range.
    """
    return SamplingParams(**values)


def _logit_bias(value: object) -> dict[int, Any]:
    if not isinstance(value, Mapping):
        raise RequestError("logit_bias: expected an object of token ids and numbers")
    bias = {}
    for token, number in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise RequestError(f"logit_bias has the key {ascii(token)[:40]}, expected a token id")
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= _MAX_BIAS:
            raise RequestError(f"logit_bias of {token} is {ascii(number)[:40]}, expected -100 to 100")
        bias[int(token)] = number
    return bias


def response_format(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The `StructuredOutputsParams` fields that a response_format stands for; None for free text."""
    if value is None:
        return None
    fields = Fields(value, ("type", "json_schema", "schema"), where="response_format.")
    match fields.get("type"):
        case "text":
            return None
        case "json_object" if "schema" not in fields:
            return {"json_object": True}
        case "json_object" | "json_schema":
            schema = fields.mapping("schema")
            if "json_schema" in fields:
                wrapper = fields.mapping("json_schema") or {}
                schema = Fields(
                    wrapper, ("name", "description", "schema", "strict"), where="response_format.json_schema."
                ).mapping("schema")
            if schema is None:
                raise RequestError("response_format.json_schema has no schema")
            return {"json": schema}
    raise RequestError(
        f"response_format.type is {ascii(fields.get('type'))[:40]}, expected text, json_object or json_schema"
    )
