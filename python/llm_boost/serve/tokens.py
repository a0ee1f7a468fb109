"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_boost.errors import RequestError
from llm_boost.model import Model
from llm_boost.serve.chat import CHAT_FIELDS, ChatPrompt
from llm_boost.serve.fields import Fields

_MAX_TOKENS = 1 << 20


def tokenize(body: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The token ids of a text or a chat.

    Raises:
        RequestError: A field is unknown or malformed.
        ChatTemplateError: The chat cannot be rendered.
    """
    fields = Fields(body, ("model", "prompt", "add_special_tokens", "return_token_strs", *CHAT_FIELDS))
    prompt = fields.text("prompt")
    if (prompt is None) == ("messages" not in fields):
        raise RequestError("prompt and messages: expected one of them")
    if prompt is None:
        token_ids = list(ChatPrompt.read(fields).encode(model).token_ids)
    else:
        add = fields.boolean("add_special_tokens", default=True)
        token_ids = model.tokenizer.encode(prompt, add_special_tokens=add)
    strings = None
    if fields.boolean("return_token_strs"):
        strings = [model.tokenizer.id_to_token(token) for token in token_ids]
    return {
        "count": len(token_ids),
        "max_model_len": model.info().max_model_len,
        "tokens": token_ids,
        "token_strs": strings,
    }


def detokenize(body: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The text of some tokens, special ones included.

    Raises:
        RequestError: A field is unknown or malformed.
    """
    fields = Fields(body, ("model", "tokens"))
    tokens = fields.get("tokens")
    limit = model.config.vocab_size
    if not isinstance(tokens, list) or len(tokens) > _MAX_TOKENS:
        raise RequestError(f"tokens: expected a list of at most {_MAX_TOKENS} token ids")
    for token in tokens:
        if type(token) is not int or not 0 <= token < limit:
            raise RequestError(f"tokens holds {ascii(token)[:40]}, expected token ids from 0 to {limit - 1}")
    return {"prompt": model.tokenizer.decode(tokens, skip_special_tokens=False)}
