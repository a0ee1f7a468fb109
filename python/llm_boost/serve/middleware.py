"""What happens to every request: the key, CORS, a log line."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_boost.serve.errors import ApiError
from llm_boost.serve.streaming import error_response

_log = logging.getLogger("llm_boost.serve")
# All headers of a request together. Peers take 4 MB; no client has a use for more than this.
MAX_HEADER_BYTES = 64 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class KeyGuard:
    """Lets only those pass who have the key.

    It comes as ``Authorization: Bearer KEY``, or as the password of HTTP Basic authentication, which browsers ask for
    when the page is opened.
    """

    def __init__(self, app: ASGIApp, key: str, *, public: Iterable[str]) -> None:
        """Guards every path but the `public` ones."""
        self._app = app
        self._digest = hashlib.sha256(key.encode()).digest()
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or scope["path"] in self._public or self._matches(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        scheme = "Basic" if scope["path"] == "/" else "Bearer"
        error = ApiError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": f'{scheme} realm="llm_boost"'},
        )
        await error_response(error)(scope, receive, send)

    def _matches(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        candidate = credentials.strip()
        if scheme.lower() == "basic":
            try:
                candidate = base64.b64decode(candidate, validate=True).decode("utf-8", "replace").partition(":")[2]
            except (binascii.Error, ValueError):
                candidate = ""
        elif scheme.lower() != "bearer":
            candidate = ""
        # Digests have one length, so that the comparison tells nothing about the key's.
        return hmac.compare_digest(hashlib.sha256(candidate.encode()).digest(), self._digest)


class RequestLog:
    """Gives every request an id, refuses huge headers, and writes a line when it has been answered. Outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        scope.setdefault("state", {})["facts"] = facts
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                MutableHeaders(raw=message["headers"])["X-Request-Id"] = request_id
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                error = ApiError(431, f"the headers have more than {MAX_HEADER_BYTES} bytes", code="headers_too_large")
                await error_response(error)(scope, receive, send_with_id)
                return
            await self._app(scope, receive, send_with_id)
        finally:
            facts["seconds"] = round(time.perf_counter() - started, 4)
            level = logging.DEBUG if scope["path"] in ("/health", "/metrics") else logging.INFO
            _log.log(level, "request", extra={"fields": facts})
