"""Measures a server in a process of its own against the engine alone: throughput, overload, disconnects, memory.

Each mode prints one line of JSON. The load comes from `load_client`, a third process, over connections that are kept::

    python tests/measure_serving.py throughput # the engine alone and the same prompts over HTTP, in turns
    python tests/measure_serving.py overload   # as many clients as the server admits and ten times as many, in turns
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
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_WORDS = ("the", "sea", "is", "a", "vast", "and", "quiet", "place", "where", "ships", "go", "to", "find", "new", "land")


class Answer(NamedTuple):
    """What `load_client` says of a request; times in seconds."""

    start: float
    status: int
    first: float
    total: float
    body: str


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


def body_of(prompt: str, arguments: argparse.Namespace, tokens: int | None = None) -> dict[str, Any]:
    """A completion of a fixed length."""
    return {
        "prompt": prompt, "max_tokens": tokens or arguments.tokens, "temperature": 0, "ignore_eos": True,
        "stream": arguments.stream, **({"stream_options": {"include_usage": True}} if arguments.stream else {}),
    }  # fmt: skip


def send(port: int, bodies: Sequence[dict[str, Any]], clients: int, **load: Any) -> list[Answer]:
    """Sends bodies from a process of its own; see `load_client.Load`."""
    request = {"port": port, "path": "/v1/completions", "bodies": bodies, "clients": clients, **load}
    command = [sys.executable, str(Path(__file__).with_name("load_client.py"))]
    done = subprocess.run(command, input=json.dumps(request).encode(), stdout=subprocess.PIPE, check=True)
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def count_statuses(answers: Sequence[Answer]) -> dict[int, int]:
    """How often each status came."""
    return dict(Counter(answer.status for answer in answers))


def offline(texts: Sequence[str], arguments: argparse.Namespace) -> float:
    """Tokens per second of the engine alone."""
    from llm_boost import Model, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)
    with Model.from_pretrained(arguments.model, max_model_len=2048, max_num_seqs=arguments.concurrency) as model:
        model.generate(texts[:2], params)
        started = time.perf_counter()
        model.generate(texts, params)
        return len(texts) * arguments.tokens / (time.perf_counter() - started)


def serve(texts: Sequence[str], arguments: argparse.Namespace) -> tuple[float, dict[int, int]]:
    """The same over HTTP, and what became of the requests."""
    bodies = [body_of(text, arguments) for text in texts]
    with server(arguments, "--max-num-seqs", str(arguments.concurrency)) as (port, _):
        send(port, bodies[:2], 2)
        answers = send(port, bodies, arguments.concurrency)
    seconds = max(answer.start + answer.total for answer in answers)
    return len(texts) * arguments.tokens / seconds, count_statuses(answers)


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine alone and the server in turns, so that a slow minute of the machine meets both."""
    texts = prompts(arguments.requests, arguments.words, arguments.seed)
    rounds = [(offline(texts, arguments), *serve(texts, arguments)) for _ in range(arguments.rounds)]
    return {
        "offline_tokens_per_s": [round(one, 1) for one, _, _ in rounds],
        "serve_tokens_per_s": [round(two, 1) for _, two, _ in rounds],
        "ratio": round(statistics.median(two / one for one, two, _ in rounds), 3),
        "statuses": [statuses for _, _, statuses in rounds],
    }


def overload(arguments: argparse.Namespace) -> dict[str, Any]:
    """A full server without and with nine times as many clients too many, in turns.

    Answers have different lengths, so that they do not end all at once. Times to the first token count from the second
    quarter of a part on, when the queue has its length. Refused clients come again after Retry-After.
    """
    capacity = arguments.concurrency + arguments.queue
    options = ("--max-num-seqs", str(arguments.concurrency), "--max-queue", str(arguments.queue))
    rng = random.Random(arguments.seed)
    parts: list[dict[str, Any]] = []
    with server(arguments, *options) as (port, _):
        for round_number in range(arguments.rounds):
            texts = prompts(4096, arguments.words, arguments.seed + round_number)
            low, high = arguments.tokens // 2, 3 * arguments.tokens // 2
            bodies = [body_of(text, arguments, rng.randint(low, high)) | {"stream": True} for text in texts]
            for factor in (1, 10):
                load = {"seconds": arguments.part_seconds, "spread": float(factor > 1), "fresh": arguments.fresh}
                answers = send(port, bodies, capacity * factor, **load)
                first = [a.first for a in answers if a.status == 200 and a.start > arguments.part_seconds / 4]
                refused = [a.total for a in answers if a.status == 429]
                parts.append({
                    "clients": capacity * factor, "statuses": count_statuses(answers),
                    "first_ms": {f"p{p}": percentile(first, p / 100) for p in (50, 99)},
                    "refused_ms": {f"p{p}": percentile(refused, p / 100) for p in (50, 90, 99, 100)},
                })  # fmt: skip
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    ratios = {p: [round(b["first_ms"][p] / a["first_ms"][p], 2) for a, b in pairs] for p in ("p50", "p99")}
    return {"parts": parts, "first_ratio": ratios, "refused_p99_ms": [b["refused_ms"]["p99"] for _, b in pairs]}


def stats(port: int) -> dict[str, float]:
    """Numbers of the metrics page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page: bytes = answer.read()
    found = re.findall(r"^vllm:(num_requests_\w+|kv_cache_usage_perc)\{.*\} (\S+)$", page.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


async def leave(port: int, text: str, arguments: argparse.Namespace, seed: int) -> None:
    """Asks, and closes the connection after a random time."""
    rng = random.Random(seed)
    body = {**body_of(text, arguments), "stream": rng.random() < 0.7, "n": rng.choice([1, 1, 2])}
    body.pop("stream_options", None)
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(), rng.uniform(0, arguments.patience))
    writer.close()


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
    statuses: Counter[int] = Counter()
    with server(arguments, "--max-num-seqs", str(arguments.concurrency), "--num-blocks", "256") as (port, pid):
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < arguments.seconds:
            texts = prompts(arguments.concurrency * 2, arguments.words, rounds)
            statuses.update(count_statuses(send(port, [body_of(t, arguments) for t in texts], arguments.concurrency)))
            asyncio.run(leave_all(port, texts, arguments))
            rounds += 1
            samples.append((round(time.perf_counter() - started, 1), resident_kib(pid)))
        threads, files = len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
    shown = samples[:: max(1, len(samples) // 20)] + samples[-1:]
    return {"rounds": rounds, "statuses": statuses, "threads": threads, "files": files, "rss_kib": shown}


def main() -> None:
    """Runs one mode."""
    modes = {mode.__name__: mode for mode in (throughput, overload, disconnect, soak)}
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
    parser.add_argument("--rounds", type=int, default=3, help="of the throughput and overload modes")
    parser.add_argument("--part-seconds", type=float, default=10.0, help="of the overload mode")
    parser.add_argument("--fresh", action="store_true", help="a connection for each request, in the overload mode")
    arguments = parser.parse_args()
    print(json.dumps({"mode": arguments.mode, **modes[arguments.mode](arguments)}))


if __name__ == "__main__":
    main()
