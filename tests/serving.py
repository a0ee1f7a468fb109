"""A server in this process, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm_boost import Model
from llm_boost.serve import ServerSettings
from llm_boost.serve.lifecycle import HttpServer

NAME = "tiny"


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error, once its shape is known to be OpenAI's."""
        error: dict[str, Any] = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return error

    def events(self) -> list[Any]:
        """The server-sent events, without the final ``[DONE]``."""
        data = [part[len("data: ") :] for part in self.body.decode().split("\n\n") if part.startswith("data: ")]
        return [json.loads(item) for item in data if item != "[DONE]"]


class TestServer:
    """A server on a free port, on a thread of its own."""

    __test__ = False

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        self.model = model
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.server = HttpServer(model, settings)
        self.state = self.server.state
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.socket])))
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Sends one request on a connection of its own; a body that is not bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, path: str, body: object, **headers: str) -> Reply:
        return self.request("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})

    def wait_until_idle(self) -> None:
        """Waits until nothing is under way; then every block must be free and all room given back."""
        deadline = time.monotonic() + 120
        while True:
            stats = self.model.stats()
            if not (stats["num_running"] or stats["num_waiting"] or self.state.admission.taken):
                break
            assert time.monotonic() < deadline, (stats, self.state.admission.taken)
            time.sleep(0.01)
        assert stats["num_free_blocks"] == stats["num_blocks"]


@contextmanager
def serving(model: Model, **settings: Any) -> Iterator[TestServer]:
    """Runs a server; it must be idle at the end."""
    server = TestServer(model, ServerSettings(served_model_names=(NAME,), **settings))
    try:
        yield server
        server.wait_until_idle()
    finally:
        server.stop()
