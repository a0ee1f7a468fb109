"""Running the application: sockets, signals, and an orderly end."""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from llm_boost.model import Model
from llm_boost.serve.app import Server, create_app
from llm_boost.serve.middleware import MAX_HEADER_BYTES
from llm_boost.serve.refusal import RefusingProtocol
from llm_boost.serve.settings import ServerSettings

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses new requests, and gives those under way until the deadline."""
        self.state.drain()
        await super().shutdown(sockets)


def run_server(model: Model, settings: ServerSettings, *, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends at once."""

    def ignore(number: int, frame: FrameType | None) -> None:
        """For SIGTERM, which uvicorn raises once more when its work is done."""

    previous = signal.signal(signal.SIGTERM, ignore)
    try:
        HttpServer(model, settings, host=host, port=port).run()
    finally:
        signal.signal(signal.SIGTERM, previous)
