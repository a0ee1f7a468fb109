"""Running the application: sockets, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from llm_boost.errors import ConfigError
from llm_boost.model import Model
from llm_boost.serve.app import Server, create_app
from llm_boost.serve.middleware import MAX_HEADER_BYTES
from llm_boost.serve.refusal import RefusingProtocol
from llm_boost.serve.settings import ServerSettings

_log = logging.getLogger("llm_boost.serve")
_KEEP_ALIVE_SECONDS = 15
# After the drain, what is left is cancelled by uvicorn; errors of the drain itself need a moment to be sent.
_GRACE_SECONDS = 2


class HttpServer(uvicorn.Server):
    """uvicorn, which on SIGTERM or SIGINT closes its sockets and waits for the answers that are under way."""

    def __init__(self, model: Model, settings: ServerSettings, **options: Any) -> None:
        """Takes uvicorn's options, such as `host` and `port`.

        The attribute `state` is what the application's routes share.
        """
        app = create_app(model, settings)
        self.state: Server = app.state.server
        super().__init__(
            uvicorn.Config(
                app,
                http=RefusingProtocol,  # over h11, which limits headers, unlike httptools
                ws="none",
                lifespan="on",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,  # while they arrive
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(settings.drain_seconds) + _GRACE_SECONDS,
                access_log=False,
                log_config=None,
                server_header=False,
                **options,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says where, which uvicorn does only for sockets of its own."""
        await super().startup(sockets)
        for bound in sockets or ():
            host, port = bound.getsockname()[:2]
            _log.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends in order on the first signal, at once on the next ones."""
        if self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._end_now)
        else:
            super().handle_exit(sig, frame)

    def _end_now(self) -> None:
        self.state.abort()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._drop_connections)

    def _drop_connections(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses new requests, and gives those under way until the deadline."""
        self.state.drain()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, which nobody can connect to until `run_server` listens.

    Raises:
        ConfigError: There is no such address, it is another machine's, or another process has the port.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # those who left the last server may linger
        bound.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on host {host!r}, port {port}: {reason}") from error
    return bound


def run_server(model: Model, settings: ServerSettings, bound: socket.socket) -> None:
    """Serves on a socket from `bind` until SIGTERM or SIGINT; a second signal ends at once."""

    def ignore(number: int, frame: FrameType | None) -> None:
        """For SIGTERM, which uvicorn raises once more when its work is done."""

    previous = signal.signal(signal.SIGTERM, ignore)
    try:
        HttpServer(model, settings).run([bound])
    finally:
        signal.signal(signal.SIGTERM, previous)
