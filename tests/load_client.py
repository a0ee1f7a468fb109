"""Many clients of a server in one small process, so that a measurement sees the server and little of itself.

Reads one JSON object from standard input, the fields of `Load`, and writes what became of each request as JSON: a list
of ``[start, status, seconds to the first byte of the body or -1, seconds to the last byte, body]``, the body only if
asked for. One thread, plain sockets, no parsing beyond the end of an answer, and a priority above the server's where it
may: the client shares the processor with what it measures.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import json
import os
import random
import re
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SENDS = 8  # at most, before answers are looked at again
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        port: Of the server.
        path: Of the requests.
        bodies: Sent in order, each once; when `seconds` is given, over and over.
        clients: How many send at the same time. Each waits for an answer before it goes on.
        seconds: Clients begin no request after so long; 0 for no limit.
        spread: Clients begin within so many seconds.
        backoff: A client that is refused waits so long, from least to most.
        fresh: Each request comes on a connection of its own.
        keep: Give the bodies of answers.
    """

    port: int
    path: str
    bodies: list[dict[str, Any]]
    clients: int
    seconds: float = 0.0
    spread: float = 0.0
    backoff: tuple[float, float] = (1.0, 1.0)
    fresh: bool = False
    keep: bool = False


@dataclass
class _Client:
    socket: socket.socket | None = None
    started: float = 0.0
    first: float = -1.0
    received: bytearray = field(default_factory=bytearray)
    body_at: int = 0  # where the body begins
    length: int | None = None  # of the body, if known


class _Run:
    """The loop over all clients."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._selector = selectors.EpollSelector()
        self._timers: list[tuple[float, int, _Client]] = []
        self._requests = self._encoded()
        self._random = random.Random(0)
        self._num_busy = 0
        self.results: list[list[Any]] = []

    def _encoded(self) -> Iterator[bytes]:
        requests = []
        for body in self._load.bodies:
            data = json.dumps(body).encode()
            head = f"POST {self._load.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            requests.append(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self._began = time.perf_counter()
        yield from requests
        while self._load.seconds:
            yield from requests

    def run(self) -> None:
        """Until nothing is left to send or to receive."""
        self._began = time.perf_counter()
        for _ in range(self._load.clients):
            self._later(_Client(), self._random.uniform(0, self._load.spread))
        while self._timers or self._num_busy:
            wait = max(self._timers[0][0] - time.perf_counter(), 0) if self._timers else None
            for key, _ in self._selector.select(wait):
                self._receive(key.data)
            for _ in range(_SENDS):
                if self._timers and self._timers[0][0] <= time.perf_counter():
                    self._send(heapq.heappop(self._timers)[2])

    def _later(self, client: _Client, seconds: float) -> None:
        heapq.heappush(self._timers, (time.perf_counter() + seconds, id(client), client))

    def _send(self, client: _Client) -> None:
        if self._load.seconds and time.perf_counter() - self._began > self._load.seconds:
            return
        request = next(self._requests, None)
        if request is None:
            return
        client.started = time.perf_counter()
        client.first, client.body_at, client.length = -1.0, 0, None
        client.received.clear()
        if client.socket is None:
            client.socket = socket.create_connection(("127.0.0.1", self._load.port))
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        client.socket.sendall(request)
        self._num_busy += 1

    def _receive(self, client: _Client) -> None:
        assert client.socket is not None
        data = client.socket.recv(1 << 16)
        now = time.perf_counter()
        if not data:  # between two requests: the server does not keep it; within one: broken
            self._close(client)
            if client.length is None and not client.received:
                return
            raise ConnectionError(f"closed after {bytes(client.received)!r}")
        received = client.received
        received += data
        if not client.body_at and (end := received.find(b"\r\n\r\n")) >= 0:
            client.body_at = end + 4
            if found := _LENGTH.search(received, 0, end):
                client.length = int(found[1])
        if not client.body_at:
            return
        if client.first < 0 and len(received) > client.body_at:
            client.first = now - client.started
        if client.length is not None:
            ended = len(received) >= client.body_at + client.length
        else:
            ended = received.endswith(b"\r\n0\r\n\r\n")
        if ended:
            self._finish(client, now)

    def _finish(self, client: _Client, now: float) -> None:
        status = int(client.received[9:12])
        body = bytes(client.received[client.body_at :]).decode() if self._load.keep else ""
        self.results.append([client.started - self._began, status, client.first, now - client.started, body])
        if self._load.fresh or b"connection: close" in client.received[: client.body_at].lower():
            self._close(client)
        self._num_busy -= 1
        if status == 200:
            self._send(client)
        else:
            self._later(client, self._random.uniform(*self._load.backoff))

    def _close(self, client: _Client) -> None:
        assert client.socket is not None
        self._selector.unregister(client.socket)
        client.socket.close()
        client.socket = None


def main() -> None:
    """Reads a load, runs it, writes the results."""
    run = _Run(Load(**json.load(sys.stdin)))
    gc.disable()
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    run.run()
    json.dump(run.results, sys.stdout)


if __name__ == "__main__":
    main()
