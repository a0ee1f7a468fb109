"""A server that plays a script, for the tests of the chat page."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm_boost.serve.page import chat_page

PATIENCE = 120.0  # seconds until a test gives up on an event

Json = dict[str, Any]


def chunk(text: str = "", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def ending(tokens: int, finish: str = "stop") -> bytes:
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()
    return chunk(finish=finish) + b"data: " + usage + b"\n\ndata: [DONE]\n\n"


class ScriptedServer(ThreadingHTTPServer):
    """Answers chats with what `script` holds: bytes to send, events to wait for, None to wait until the client left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.script: list[bytes | threading.Event | None] = [chunk("Hello."), ending(3)]
        self.failure: tuple[int, Json, Json] | None = None  # status, headers, body
        self.key = ""
        self.requests: list[Json] = []
        self.paths: list[str] = []
        self.left = threading.Event()

    def __enter__(self) -> ScriptedServer:
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, headers: Any, body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        if not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.answer(401, {}, json.dumps({"error": {"message": "Wrong API key."}}).encode())
        return False

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/":
            self.answer(200, chat_page().headers, chat_page().body)
        elif self.allowed():
            models = [{"id": "tiny"}, {"id": "large"}]
            self.answer(200, {"Content-Type": "application/json"}, json.dumps({"data": models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.requests.append(body)
        if self.server.failure:
            status, headers, problem = self.server.failure
            self.answer(status, headers, json.dumps(problem).encode())
            return
        self.answer(200, {"Content-Type": "text/event-stream"}, b"")
        for part in self.server.script:
            if isinstance(part, bytes):
                self.wfile.write(part)
            elif part:
                part.wait(PATIENCE)
            elif not self.connection.recv(1):
                self.server.left.set()
