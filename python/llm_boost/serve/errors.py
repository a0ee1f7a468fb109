"""Errors of the HTTP API, in the shape that OpenAI clients read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llm_boost.errors import ChatTemplateError, LlmBoostError, RequestError, TokenizerError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# How messages about a field begin.
_PARAM = re.compile(r"([a-z_]+)[][.\w]*(?::| has | holds | is | needs | of )")


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        message: What is wrong, what was expected, and the remedy.
        param: The field of the request's body that is wrong, if it is one.
        code: A word for programs.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception: its own mistakes in full, of others only that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (RequestError, ChatTemplateError, TokenizerError)):
        message = str(error)
        named = _PARAM.match(message)
        return ApiError(400, message, param=named and named[1])
    if isinstance(error, LlmBoostError):
        return ApiError(500, f"the engine failed: {error}", code="engine_error")
    return ApiError(500, "the server failed; its log says why", code="internal_error")
