"""Refusals of a full server, given before a request is parsed.

Parsing, routing and logging a request takes 0.2 ms: when hundreds of clients come at once, the last would wait long for
a refusal, and those whose requests are being computed would wait for the time it takes. So, while the server is full, a
plain request is answered from the bytes of its head, in a tenth of the time. Others go the usual way, which decides the
same.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_boost.serve.admission import Admission
from llm_boost.serve.errors import ApiError
from llm_boost.serve.middleware import MAX_HEADER_BYTES, Guard, headers_too_large, request_id
from llm_boost.serve.streaming import error_response

_log = logging.getLogger("llm_boost.serve")
_LOG_SECONDS = 1.0
# Stricter than HTTP: a request with a body and nothing unusual.
_HEAD = re.compile(rb"POST (/[a-z0-9_/]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+: [\x20-\x7e]*\r\n)+)\r\n")
# Headers that say how to read a request or answer it.
_SPECIAL = frozenset((b"expect", b"origin", b"transfer-encoding", b"upgrade"))
_LENGTH = re.compile(rb"[0-9]{1,7}")  # a body of gigabytes is not read to its end
_CLOSE = (b"connection", b"close")
_KEEP_ALIVE = b"keep-alive"


class Refusals:
    """Tells from the bytes of a request whether a full server refuses it. Belongs to the event loop."""

    def __init__(
        self, admission: Admission, paths: Collection[str], guards: Collection[Guard], observe: Callable[[], None]
    ) -> None:
        """Takes what every refusal depends on.

        Args:
            admission: What may be full.
            paths: Of the routes that need room.
            guards: Who is not let in is not told that the server is full.
            observe: Called for each refusal.
        """
        self._admission = admission
        self._paths = frozenset(path.encode() for path in paths)
        self._guards = tuple(guards)
        self._observe = observe
        self._num_unlogged = 0

    def answer(self, data: bytes) -> tuple[Response, int] | None:
        """The answer to a request that is refused, and how much of its body is still to come.

        Args:
            data: What has come, from the beginning of a request on.

        Returns:
            None for what must be looked at more closely.
        """
        if not self._admission.is_full:
            return None
        head = _HEAD.match(data)
        if head is None or head[1] not in self._paths or head.end() > MAX_HEADER_BYTES:
            return None
        pairs = [line.split(b": ", 1) for line in head[2].split(b"\r\n")[:-1]]
        headers = {name.lower(): value for name, value in pairs}
        length = headers.get(b"content-length", b"")
        plain = len(headers) == len(pairs) and _SPECIAL.isdisjoint(headers) and _LENGTH.fullmatch(length)
        if not plain or headers.get(b"connection", _KEEP_ALIVE).lower() != _KEEP_ALIVE:
            return None
        missing = head.end() + int(length) - len(data)
        shown = Headers(raw=list(headers.items()))
        if missing < 0 or any(guard.objection(head[1].decode(), shown) for guard in self._guards):
            return None
        self._count()
        response = error_response(self._admission.full())
        response.raw_headers.append((b"x-request-id", request_id(shown).encode()))
        return response, missing

    def _count(self) -> None:
        """Logs numbers: a line for each refusal would take longer than the refusal."""
        self._observe()
        self._num_unlogged += 1
        if self._num_unlogged == 1:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._log)

    def _log(self) -> None:
        _log.info("refused", extra={"fields": {"status": 429, "requests": self._num_unlogged}})
        self._num_unlogged = 0


class RefusingProtocol(H11Protocol):
    """uvicorn's protocol, but for what `Refusals`, in the application's state, answer at once, and what is not HTTP.

    A request must arrive as a whole within the time that the settings give it; else its connection is closed.
    """

    _num_unread = 0  # bytes of the body of a request that was refused
    _deadline: asyncio.TimerHandle | None = None  # of the request that is arriving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's type
        """Expects a request."""
        super().connection_made(transport)
        self._await_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        self._end_arrival()

    def data_received(self, data: bytes) -> None:
        """Answers a request, or begins to."""
        num_skipped = min(self._num_unread, len(data))
        self._num_unread -= num_skipped
        data = data[num_skipped:]
        if data and not self._refuse(data):
            super().data_received(data)
        if self._num_unread or self._is_within_head() or self.conn.their_state is h11.SEND_BODY:
            self._await_arrival()
        else:
            self._end_arrival()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, in the shape of all other errors."""
        error = ApiError(400, f"the request is not HTTP: {msg}", code="invalid_http")
        if len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES:
            error = headers_too_large()
        self._write(error_response(error), _CLOSE)
        self.transport.close()

    def _await_arrival(self) -> None:
        if self._deadline is None:
            app: Any = self.config.app
            seconds = app.state.server.settings.request_seconds
            self._deadline = self.loop.call_later(seconds, self._give_up, seconds)

    def _end_arrival(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self, seconds: float) -> None:
        if self._is_within_head() or (self.conn.their_state, self.conn.our_state) == (h11.SEND_BODY, h11.SEND_RESPONSE):
            error = ApiError(408, f"the request did not arrive within {seconds:g} s", code="request_timeout")
            self._write(error_response(error), _CLOSE)
        self.transport.close()

    def _is_within_head(self) -> bool:
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def _refuse(self, data: bytes) -> bool:
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            return False  # within a request
        app: Any = self.config.app
        refusal = app.state.refusals.answer(data)
        if refusal is None:
            return False
        response, self._num_unread = refusal
        self._write(response)
        self.server_state.total_requests += 1
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        return True

    def _write(self, response: Response, *more_headers: tuple[bytes, bytes]) -> None:
        status = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()
        headers = (*self.server_state.default_headers, *response.raw_headers, *more_headers)
        fields = [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([status, *fields, b"", bytes(response.body)]))
