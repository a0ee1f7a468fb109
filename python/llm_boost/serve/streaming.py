"""Answers: JSON, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_boost.serve.errors import ApiError, as_api_error

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def encode(value: object) -> bytes:
    """JSON in ASCII, so that no client can read a character wrongly."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer that is JSON."""
    return Response(encode(value), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An answer that is an error."""
    return json_response(error.body(), error.status, error.headers)


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has gone; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer that is a stream of events.

    Nothing is sent before the first event, so that what goes wrong until then is an answer with its proper status;
    afterwards, an error is an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        on_disconnect: Callable[[], None],
        on_idle: Callable[[], None],
        idle_seconds: float,
    ) -> None:
        """Takes the events.

        Args:
            chunks: Encoded events; each item is sent at once.
            on_disconnect: Called when the client goes; must make `chunks` end.
            on_idle: Called when nothing came for `idle_seconds`; should make `chunks` yield.
            idle_seconds: See `on_idle`.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._chunks = chunks
        self._on_disconnect = on_disconnect
        self._on_idle = on_idle
        self._idle_seconds = idle_seconds
        self._num_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        watch = asyncio.create_task(wait_for_disconnect(receive))
        watch.add_done_callback(lambda _: self._on_disconnect())
        ticker = asyncio.create_task(self._tick())
        try:
            await self._send(scope, receive, send, watch)
        finally:
            ticker.cancel()
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(watch, ticker, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send, watch: asyncio.Task[None]) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        try:
            async for chunk in self._chunks:
                if watch.done():
                    return
                if not self._num_sent:
                    await send(start)
                self._num_sent += 1
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as problem:  # noqa: BLE001  # whatever it is, the client is told so
            error = as_api_error(problem)
            if not self._num_sent:
                await error_response(error)(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": event(error.body()) + DONE, "more_body": True})
        if not self._num_sent:
            await send(start)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tick(self) -> None:
        """Calls `on_idle` whenever nothing was sent for a while."""
        while True:
            before = self._num_sent
            await asyncio.sleep(self._idle_seconds)
            if self._num_sent == before:
                self._on_idle()
