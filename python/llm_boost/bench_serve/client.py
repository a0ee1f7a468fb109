"""A small HTTP/1.1 client that notes when each piece of a streamed answer came.

It does nothing else while answers come: what was received is understood after its request has ended, so that the client
takes as little as possible of a machine that it shares with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llm_boost.bench_serve.metrics import RequestRecord
from llm_boost.bench_serve.workload import LoadRequest
from llm_boost.errors import BackendError, ConfigError

_MAX_LINE = 1 << 20  # bytes of a header or of a chunk's size

# Sends a body and yields the pieces of the answer as they come.
Post = Callable[[bytes], AsyncGenerator[bytes, None]]


class HttpError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {_message(body)}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go. Each has a connection of its own.

    Attributes:
        base_url: Like ``http://127.0.0.1:8000``.
        api_key: Sent as bearer token, where the server wants one.

    Raises:
        ConfigError: The address cannot be used.
    """

    base_url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.base_url)
            valid = url.scheme in ("http", "https") and url.hostname is not None and url.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"base URL is '{self.base_url}', expected something like http://127.0.0.1:8000")

    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes, None]:
        """Sends a request; yields the pieces of the answer.

        Raises:
            HttpError: The status is not 200.
            OSError, EOFError, ValueError: The connection failed, broke off, or what came is not HTTP.
        """
        url = urlsplit(self.base_url)
        tls = url.scheme == "https"
        port = url.port or (443 if tls else 80)
        reader, writer = await asyncio.open_connection(url.hostname, port, ssl=tls or None, limit=_MAX_LINE)
        try:
            lines = [f"{method} {url.path.rstrip('/')}{path} HTTP/1.1", f"Host: {url.netloc}", "Connection: close"]
            lines += [f"Content-Length: {len(body)}", "Content-Type: application/json", "Accept: */*"]
            lines += [f"Authorization: Bearer {self.api_key}"] if self.api_key else []
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            status, headers = await _read_head(reader)
            pieces = _body(reader, headers)
            if status != 200:
                raise HttpError(status, b"".join([piece async for piece in pieces]))
            async for piece in pieces:
                yield piece
        finally:
            writer.transport.abort()  # at once, also where the answer goes on


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((await reader.readuntil(b"\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


async def fetch_json(server: Server, path: str) -> dict[str, Any]:
    """Gets a JSON object.

    Raises:
        BackendError: The server cannot be reached, or does not answer as it should.
    """
    try:
        parsed = json.loads(b"".join([piece async for piece in server.request("GET", path)]))
    except (HttpError, OSError, EOFError, ValueError, IndexError) as error:
        raise BackendError(
            f"{server.base_url}{path}: {error or type(error).__name__}; is the server running?"
        ) from error
    if not isinstance(parsed, dict):
        raise BackendError(f"{server.base_url}{path}: answered a JSON {type(parsed).__name__}, expected an object")
    return parsed


async def send(post: Post, request: LoadRequest, timeout: float, *, leaves: bool = False) -> RequestRecord:
    """Sends a request and records its answer.

    Args:
        post: What sends it.
        request: What is sent.
        timeout: Seconds after which the client hangs up.
        leaves: Whether hanging up is the intention, rather than an error.
    """
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    received: list[bytes] = []

    async def receive() -> None:
        async with contextlib.aclosing(post(request.payload)) as pieces:
            async for piece in pieces:
                times.append(clock())
                received.append(piece)

    start = clock()
    status, error = 200, ""
    try:
        await asyncio.wait_for(receive(), timeout)
    except asyncio.TimeoutError:
        status, error = 0, "left" if leaves else f"not answered within {timeout:g} s"
    except HttpError as problem:
        status, error = problem.status, str(problem)
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as problem:
        status, error = 0, f"connection: {problem or type(problem).__name__}"
    return _understand(request, list(zip(times, received, strict=True)), start, clock(), status, error)


def _understand(
    request: LoadRequest, arrivals: list[tuple[float, bytes]], start: float, end: float, status: int, error: str
) -> RequestRecord:
    """Makes a record of what came."""
    texts: list[str] = []
    times: list[float] = []
    usage: dict[str, Any] = {}
    finished = False
    for time, event in _events(arrivals):
        if not isinstance(event, dict) or "error" in event:
            error = error or f"in the stream: {event}"
            continue
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            ends = choice.get("finish_reason") is not None
            if text or (ends and not times):  # an answer may be one token that shows nothing
                times.append(time)
            texts.append(text)
            finished = finished or ends
    if not finished:
        error = error or "the stream broke off"
    return RequestRecord(
        start=start,
        end=times[-1] if finished else end,
        status=status,
        error=error,
        input_tokens=usage.get("prompt_tokens") or request.input_tokens,
        output_tokens=usage.get("completion_tokens") or len(times),
        token_times=tuple(times),
        text="".join(texts),
    )


def _events(arrivals: list[tuple[float, bytes]]) -> Iterator[tuple[float, Any]]:
    """The JSON of each server-sent event, with the time at which its last byte came."""
    rest = b""
    for time, piece in arrivals:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line[5:].strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                try:
                    yield time, json.loads(data)
                except ValueError:
                    yield time, {"error": f"not JSON: {data[:100]!r}"}


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
