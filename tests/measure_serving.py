"""Measures a server in a process of its own against the engine alone: throughput, overload, disconnects, memory.

Each mode prints one line of JSON. The load comes from this process, over keep-alive connections::

    python tests/measure_serving.py offline    # the engine alone, as many prompts at once as --concurrency
    python tests/measure_serving.py serve      # the same prompts over HTTP
    python tests/measure_serving.py overload   # ten times what the server admits
    python tests/measure_serving.py disconnect # clients that leave at random moments
    python tests/measure_serving.py soak       # memory over --seconds of mixed load
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

_WORDS = ("the", "sea", "is", "a", "vast", "and", "quiet", "place", "where", "ships", "go", "to", "find", "new", "land")


def prompts(count: int, words: int, seed: int) -> list[str]:
    """Random prompts of some words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=words)) for _ in range(count)]


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of the values do not exceed, in milliseconds."""
    return round(1000 * sorted(values)[min(len(values) - 1, int(part * len(values)))], 1) if values else 0.0


@contextlib.contextmanager
def server(arguments: argparse.Namespace, *options: str) -> Iterator[tuple[int, int]]:
    """Runs ``llm-boost serve``; gives its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llm_boost", "serve", arguments.model, "--port", str(port)]
    command += ["--max-model-len", "2048", "--log-level", "warning", *options]
    process = subprocess.Popen(command)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes, float, float]:
        """Sends a body; gives status, answer, and the seconds until its first and its last byte."""
        started = time.perf_counter()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        headers = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        first = time.perf_counter() - started
        length = re.search(rb"content-length: (\d+)", headers)
        if length is not None:
            answer = await self._reader.readexactly(int(length[1]))
        else:
            answer = b""
            while size := int((await self._reader.readline()).strip(), 16):
                answer += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
        if b"connection: close" in headers:
            self.close()
        return int(headers[9:12]), answer, first, time.perf_counter() - started

    def close(self) -> None:
        """Leaves."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def body_of(prompt: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A completion of a fixed length."""
    return {
        "prompt": prompt, "max_tokens": arguments.tokens, "temperature": 0, "ignore_eos": True,
        "stream": arguments.stream, **({"stream_options": {"include_usage": True}} if arguments.stream else {}),
    }  # fmt: skip


async def load(
    port: int, texts: Sequence[str], concurrency: int, arguments: argparse.Namespace, spread: float = 0.0
) -> dict[str, Any]:
    """Sends all prompts, so many at a time; a refused one is not sent again. Clients begin within `spread` seconds."""
    waiting = iter(texts)
    statuses: dict[int, int] = {}
    first: list[float] = []
    refused: list[float] = []

    async def client() -> None:
        connection = Connection(port)
        await asyncio.sleep(random.uniform(0, spread))
        for text in waiting:
            status, _, to_first, total = await connection.post("/v1/completions", body_of(text, arguments))
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:
                first.append(to_first)
            else:
                refused.append(total)
                await asyncio.sleep(random.uniform(*arguments.backoff))
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2), "statuses": statuses,
        "tokens_per_s": round(len(first) * arguments.tokens / seconds, 1),
        "first_ms": {f"p{p}": percentile(first, p / 100) for p in (50, 90, 99)},
        "refused_ms": {f"p{p}": percentile(refused, p / 100) for p in (50, 90, 99)},
    }  # fmt: skip


def offline(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine alone."""
    from llm_boost import Model, SamplingParams

    texts = prompts(arguments.requests, arguments.words, arguments.seed)
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)
    with Model.from_pretrained(arguments.model, max_model_len=2048, max_num_seqs=arguments.concurrency) as model:
        model.generate(texts[:2], params)
        started = time.perf_counter()
        model.generate(texts, params)
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "tokens_per_s": round(arguments.requests * arguments.tokens / seconds, 1)}


def serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same over HTTP."""
    texts = prompts(arguments.requests, arguments.words, arguments.seed)
    with server(arguments, "--max-num-seqs", str(arguments.concurrency)) as (port, _):
        asyncio.run(load(port, texts[:2], 2, arguments))
        return asyncio.run(load(port, texts, arguments.concurrency, arguments))


def overload(arguments: argparse.Namespace) -> dict[str, Any]:
    """As many clients as the server admits, then ten times as many."""
    admitted = arguments.concurrency + arguments.queue
    with server(arguments, "--max-num-seqs", str(arguments.concurrency), "--max-queue", str(arguments.queue)) as (
        port,
        _,
    ):
        result = {}
        for name, factor in (("1x", 1), ("10x", 10)):
            texts = prompts(arguments.requests * factor, arguments.words, arguments.seed + factor)
            result[name] = asyncio.run(
                load(port, texts, admitted * factor, arguments, arguments.backoff[1] * (factor > 1))
            )
    return result


def stats(port: int) -> dict[str, float]:
    """Numbers of the metrics page."""
    _, page, _, _ = asyncio.run(_get(port, "/metrics"))
    found = re.findall(r"^vllm:(num_requests_\w+|kv_cache_usage_perc)\{.*\} (\S+)$", page.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


async def _get(port: int, path: str) -> tuple[int, bytes, float, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    return 200, data, 0.0, 0.0


async def leave(port: int, text: str, arguments: argparse.Namespace, seed: int) -> None:
    """Asks, and closes the connection after a random time."""
    rng = random.Random(seed)
    connection = Connection(port)
    body = {**body_of(text, arguments), "stream": rng.random() < 0.7, "n": rng.choice([1, 1, 2])}
    body.pop("stream_options", None)
    with contextlib.suppress(asyncio.TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        await asyncio.wait_for(connection.post("/v1/completions", body), rng.uniform(0, arguments.patience))
    connection.close()


async def leave_all(port: int, texts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Many at a time."""
    waiting = iter(enumerate(texts))

    async def client() -> None:
        for seed, text in waiting:
            await leave(port, text, arguments, seed)

    await asyncio.gather(*(client() for _ in range(arguments.concurrency)))


def disconnect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Clients that leave at random moments; what is left a second later."""
    texts = prompts(arguments.requests, arguments.words, arguments.seed)
    with server(arguments, "--max-num-seqs", str(arguments.concurrency)) as (port, _):
        started = time.perf_counter()
        asyncio.run(leave_all(port, texts, arguments))
        seconds = time.perf_counter() - started
        time.sleep(1)
        return {"seconds": round(seconds, 2), **stats(port)}


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mixed load, and the server's memory over time. The cache is small, so that all of it is soon in use."""
    samples: list[tuple[float, int]] = []
    with server(arguments, "--max-num-seqs", str(arguments.concurrency), "--num-blocks", "256") as (port, pid):
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < arguments.seconds:
            texts = prompts(arguments.concurrency * 2, arguments.words, rounds)
            asyncio.run(load(port, texts, arguments.concurrency, arguments))
            asyncio.run(leave_all(port, texts, arguments))
            rounds += 1
            samples.append((round(time.perf_counter() - started, 1), resident_kib(pid)))
        threads, files = len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
    shown = samples[:: max(1, len(samples) // 20)] + samples[-1:]
    return {"rounds": rounds, "threads": threads, "files": files, "rss_kib": shown}


def main() -> None:
    """Runs one mode."""
    modes = {mode.__name__: mode for mode in (offline, serve, overload, disconnect, soak)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--queue", type=int, default=32, help="of the overload mode")
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the soak mode")
    parser.add_argument("--patience", type=float, default=2.0, help="longest time until a client leaves")
    parser.add_argument("--backoff", type=float, nargs=2, default=(4, 8), help="seconds a refused client waits")
    arguments = parser.parse_args()
    print(json.dumps({"mode": arguments.mode, **modes[arguments.mode](arguments)}))


if __name__ == "__main__":
    main()
