"""What happens to every request: host and key are checked, a line is logged."""

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
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_boost.serve.errors import ApiError
from llm_boost.serve.streaming import error_response

_log = logging.getLogger("llm_boost.serve")
# All headers of a request together. Peers take 4 MB; no client has a use for more than this.
MAX_HEADER_BYTES = 64 << 10
_PORT = re.compile(r":\d+$")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Guard(Protocol):
    """Decides who is let in."""

    def objection(self, path: str, headers: Headers) -> ApiError | None:
        """Why a request is not let in; None if it is."""


class GuardMiddleware:
    """Lets only those pass whom a guard lets in."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        """Takes the guard."""
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http":
            error = self._guard.objection(scope["path"], Headers(scope=scope))
            if error is not None:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class KeyGuard:
    """Lets only those in who have the key.

    It comes as ``Authorization: Bearer KEY``, or as the password of HTTP Basic authentication, which browsers ask for
    when the page is opened.
    """

    def __init__(self, key: str, *, public: Iterable[str]) -> None:
        """Guards every path but the `public` ones."""
        self._digest = hashlib.sha256(key.encode()).digest()
        self._public = frozenset(public)

    def objection(self, path: str, headers: Headers) -> ApiError | None:
        """Why a request is not let in; None if it is."""
        if path in self._public or self._matches(headers):
            return None
        scheme = "Basic" if path == "/" else "Bearer"
        return ApiError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": f'{scheme} realm="llm_boost"'},
        )

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


class HostGuard:
    """Lets only those in who call the server by a name of its own."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Takes names and addresses, without ports."""
        self._hosts = frozenset(host.lower() for host in hosts)

    def objection(self, path: str, headers: Headers) -> ApiError | None:
        """Why a request is not let in; None if it is."""
        host = _PORT.sub("", headers.get("host", "")).strip("[]").lower()
        return (
            None if host in self._hosts else ApiError(421, f"this server is not {ascii(host)[:80]}", code="wrong_host")
        )


class RequestLog:
    """Gives every request an id, refuses huge headers, and writes a line when it has been answered. Outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = request_id(Headers(scope=scope))
        facts: dict[str, Any] = {"request_id": name, "method": scope["method"], "path": scope["path"][:200]}
        scope.setdefault("state", {})["facts"] = facts
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                MutableHeaders(raw=message["headers"])["X-Request-Id"] = name
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                await error_response(headers_too_large())(scope, receive, send_with_id)
                return
            await self._app(scope, receive, send_with_id)
        finally:
            facts["seconds"] = round(time.perf_counter() - started, 4)
            level = logging.DEBUG if scope["path"] in ("/health", "/metrics") else logging.INFO
            _log.log(level, "request", extra={"fields": facts})


def headers_too_large() -> ApiError:
    """What a client is told whose headers are too large."""
    return ApiError(431, f"the headers have more than {MAX_HEADER_BYTES} bytes", code="headers_too_large")


def request_id(headers: Headers) -> str:
    """What a client calls its request, or a fresh name."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
