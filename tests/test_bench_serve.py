"""The load generator: exact numbers on a clock of its own, and real HTTP from servers that behave and that do not."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import selectors
import statistics
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_boost.bench_serve.client import Server, fetch_json, send
from llm_boost.bench_serve.load import run_load
from llm_boost.bench_serve.metrics import (
    LATENCIES,
    RequestRecord,
    concurrency,
    parse_goodput,
    summarize,
    tokens_per_second,
)
from llm_boost.bench_serve.workload import (
    LoadRequest,
    RandomPrompts,
    arrival_times,
    file_requests,
    random_requests,
)
from llm_boost.cli import main
from llm_boost.errors import BackendError, ConfigError

Result = TypeVar("Result")
PATIENCE = 120.0


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def token(text: str = "x", finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish}])


def usage(prompt: int, completion: int) -> bytes:
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion}) + b"data: [DONE]\n\n"


class _Moments(selectors.SelectSelector):
    """Does not wait: time that would be waited for has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing is left that could happen"
        self.now += max(timeout, 0)
        return super().select(0)


def run_virtually(main: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine on a clock that jumps; sums of binary fractions are exact on it."""
    moments = _Moments()
    loop = asyncio.SelectorEventLoop(moments)
    loop.time = lambda: moments.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def answering(*parts: bytes | float | Exception) -> Callable[[bytes], AsyncGenerator[bytes, None]]:
    """A server that sends bytes, waits seconds, or fails."""

    async def post(body: bytes) -> AsyncGenerator[bytes, None]:
        for part in parts:
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, Exception):
                raise part
            else:
                await asyncio.sleep(part)

    return post


REQUEST = LoadRequest(b"{}", 7)


# ---- One request.


def test_times_of_a_request() -> None:
    post = answering(0.5, token("a"), 0.25, token("b"), 0.125, token("cd"), 1.0, token("", "stop"), 2.0, usage(11, 4))
    record = run_virtually(send(post, REQUEST, 60))
    assert record == RequestRecord(
        start=0, end=0.875, status=200, error="", input_tokens=11, output_tokens=4, token_times=(0.5, 0.75, 0.875),
        text="abcd",
    )  # fmt: skip
    assert (record.ttft, record.e2el, record.tpot, record.itls) == (0.5, 0.875, 0.125, [0.25, 0.125])


def test_chats_count_text_rather_than_roles() -> None:
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    text = event(choices=[{"delta": {"content": "Hi"}, "finish_reason": None}])
    end = event(choices=[{"delta": {}, "finish_reason": "stop"}])
    record = run_virtually(send(answering(0.25, role, 0.25, text, 0.5, end), REQUEST, 60))
    assert (record.ttft, record.text, record.error) == (0.5, "Hi", "")
    assert (record.input_tokens, record.output_tokens) == (7, 1)  # without usage: what is known here


def test_an_answer_that_shows_nothing_has_times() -> None:
    record = run_virtually(send(answering(0.5, token("", "stop"), usage(3, 1)), REQUEST, 60))
    assert (record.error, record.ttft, record.e2el, record.tpot) == ("", 0.5, 0.5, None)


@pytest.mark.parametrize(
    ("parts", "timeout", "status", "error", "end"),
    [
        ((0.5, token()), 60, 200, "the stream broke off", 0.5),
        ((0.5, token(), event(error={"message": "no"})), 60, 200, "in the stream: {'error': {'message': 'no'}}", 0.5),
        ((0.5, b"data: {\n\n"), 60, 200, "in the stream: {'error': \"not JSON: b'{'\"}", 0.5),
        ((0.5, ConnectionResetError("reset")), 60, 0, "connection: reset", 0.5),
        ((0.5, token(), 99.0), 2, 0, "not answered within 2 s", 2.0),
    ],
)
def test_answers_that_fail(parts: Any, timeout: float, status: int, error: str, end: float) -> None:
    record = run_virtually(send(answering(*parts), REQUEST, timeout))
    assert (record.status, record.error, record.end) == (status, error, end)


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), max_size=8))
def test_events_may_be_cut_anywhere(cuts: list[int]) -> None:
    stream = (token("né") + b": ping\r\n\r\n" + token("e", "stop").replace(b"\n", b"\r\n") + usage(2, 2)).replace(
        b"n\\u00e9", "né".encode()
    )
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    record = run_virtually(send(answering(*pieces), REQUEST, 60))
    assert (record.text, record.error, record.input_tokens) == ("née", "", 2)


# ---- Many.


def test_load_keeps_to_arrivals_and_concurrency() -> None:
    post = answering(1.0, token("a", "stop"))
    seen: list[RequestRecord] = []
    load = run_load(lambda r: send(post, r, 60), [REQUEST] * 5, [0, 0, 0, 0.5, 4.0], 2, seen.append)
    records, duration = run_virtually(load)
    assert [record.start for record in records] == [0, 0, 1, 1, 4]
    assert duration == 5
    assert len(seen) == 5
    assert concurrency(records) == [(0, 1), (0, 2), (1, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 0), (4, 1), (5, 0)]


def record(start: float, times: list[float], tokens: int, status: int = 200, error: str = "") -> RequestRecord:
    return RequestRecord(start, times[-1], status, error, 10, tokens, tuple(times), "")


def test_statistics() -> None:
    records = [
        record(0.0, [0.5, 1.0, 1.5], 3),
        record(1.0, [1.25, 3.25], 5),
        record(2.0, [3.0], 1),
        record(3.0, [3.125], 0, 429, "status 429: full"),
    ]
    result = summarize(records, 4.0, {"ttft": 500, "tpot": 500})
    counts = ("completed", "failed", "total_input_tokens", "total_output_tokens", "max_concurrent_requests")
    assert [result[name] for name in counts] == [3, 1, 30, 9, 2]
    assert result["request_throughput"] == 0.75
    assert result["request_goodput"] == 0.5
    assert result["output_throughput"] == 2.25
    assert result["total_token_throughput"] == 9.75
    assert result["statuses"] == {"200": 3, "429": 1}
    for name, values in {
        "ttft": [500, 250, 1000],
        "tpot": [500, 500],
        "itl": [500, 500, 2000],
        "e2el": [1500, 2250, 1000],
        "rejection": [125],
    }.items():
        assert result[f"mean_{name}_ms"] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert result[f"median_{name}_ms"] == result[f"p50_{name}_ms"] == statistics.median(values)
        assert result[f"std_{name}_ms"] == pytest.approx(statistics.pstdev(values), rel=1e-12)
        assert result[f"p90_{name}_ms"] == pytest.approx(np.percentile(values, 90), rel=1e-12)
        assert result[f"p99_{name}_ms"] == pytest.approx(np.percentile(values, 99), rel=1e-12)
    assert tokens_per_second(records[:3]) == [1, 4.5, 0, 3.5]
    assert result["max_output_tokens_per_s"] == 4.5


def test_statistics_of_nothing() -> None:
    result = summarize([record(0, [1.0], 0, 500, "status 500")], 1.0, {})
    assert (result["completed"], result["failed"], result["mean_ttft_ms"], result["request_goodput"]) == (0, 1, 0, None)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("word", ["ttf:5", "ttft", "ttft:fast"])
def test_goodput_words(word: str) -> None:
    with pytest.raises(ConfigError, match="--goodput"):
        parse_goodput([word])


# ---- What is sent, and when.


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 5), st.integers(1, 3))
def test_random_lengths(length: int, ratio: float, prefix: int, prefixes: int) -> None:
    spec = RandomPrompts(input_len=length, output_len=length, range_ratio=ratio, prefix_len=prefix,
                         num_prefixes=prefixes, token_ids=(5, 900))  # fmt: skip
    make = partial(random_requests, spec, 30, {"model": "m"}, chat=False)
    requests = make(np.random.default_rng(1))
    assert requests == make(np.random.default_rng(1))
    bodies = [json.loads(request.payload) for request in requests]
    least, most = max(1, round(length * (1 - ratio))), round(length * (1 + ratio))
    for request, body in zip(requests, bodies, strict=True):
        assert len(body["prompt"]) == request.input_tokens
        assert least <= request.input_tokens - prefix <= most
        assert least <= body["max_tokens"] <= most
        assert set(body["prompt"]) <= set(range(5, 901))
    assert len({tuple(body["prompt"][:prefix]) for body in bodies}) <= prefixes


def test_random_chats_are_text() -> None:
    (request,) = random_requests(RandomPrompts(input_len=4), 1, {}, np.random.default_rng(0), chat=True)
    (message,) = json.loads(request.payload)["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 4


@pytest.mark.parametrize("fields", [{"input_len": 0}, {"range_ratio": 1.0}, {"token_ids": (5, 4)}, {"num_prefixes": 0}])
def test_random_prompts_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        RandomPrompts(**fields)


def test_requests_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n\n{"prompt": [1, 2], "max_tokens": 3}\n')
    bodies = [json.loads(r.payload) for r in file_requests(path, 3, {"model": "m"}, 9, chat=False)]
    assert [(body["prompt"], body["max_tokens"]) for body in bodies] == [("Hi", 9), ([1, 2], 3), ("Hi", 9)]
    path.write_text('{"prompt": "Hi"}\n')
    (chat,) = file_requests(path, 1, {}, 9, chat=True)
    assert json.loads(chat.payload)["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("text", "chat", "said"),
    [
        ("", False, "has no lines"),
        ('{"prompt": "a"}\n{"promt": "a"}', False, ":2: unknown key 'promt'; did you mean 'prompt'"),
        ('{"max_tokens": 1}', False, ":1: has no 'prompt'"),
        ('{"prompt": [1]}', True, ":1: has no 'messages'"),
        ("[]", False, ":1: is a JSON list"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, chat: bool, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        file_requests(path, 1, {}, 9, chat=chat)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_their_rate_and_burstiness(burstiness: float) -> None:
    count = 20_000
    times = arrival_times(count, 10.0, burstiness, np.random.default_rng(3))
    gaps = np.diff([0.0, *times])[1:]
    # Both are means of `count` samples: five standard errors of gamma variates.
    assert gaps.mean() == pytest.approx(0.1, rel=5 / math.sqrt(count * burstiness))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)
    assert times[0] == 0


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_arrivals_are_checked(rate: float, burstiness: float) -> None:
    with pytest.raises(ConfigError, match="more than 0"):
        arrival_times(1, rate, burstiness, np.random.default_rng(0))


# ---- HTTP.

OK = b"HTTP/1.1 200 OK\r\n"


async def against(answer: bytes, step: int = 0, method: str = "POST") -> tuple[RequestRecord, bytes]:
    """The record of a request to a real server that sends these bytes, all or some at a time, and hangs up."""
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
        for at in range(0, len(answer), step or len(answer)):
            writer.write(answer[at : at + (step or len(answer))])
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base"
        post = partial(Server(address, "secret").request, method, "/v1/completions")
        return await send(post, REQUEST, PATIENCE), bytes(received)


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("way", ["chunked", "length", "close"])
def test_bodies(way: str, step: int) -> None:
    body = token("a") + token("b", "stop") + usage(3, 2)
    if way == "chunked":
        chunks = [body[at : at + 50] for at in range(0, len(body), 50)]
        framed = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        answer = OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    elif way == "length":
        answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        answer = OK + b"\r\n" + body
    result, received = asyncio.run(against(answer, step))
    assert (result.text, result.error, result.input_tokens) == ("ab", "", 3)
    head, _, sent = received.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret" in head
    assert sent == b"{}"


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (b'HTTP/1.1 429 Busy\r\nContent-Length: 31\r\n\r\n{"error":{"message":"no room"}}', 429, "status 429: no room"),
        (b"HTTP/1.1 502 Bad\r\n\r\n<h1>Bad gateway</h1>", 502, "status 502: <h1>Bad gateway</h1>"),
        (b"", 0, "connection: 0 bytes read"),
        (b"not http\r\n\r\n", 0, "connection: "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 0, "connection: invalid literal"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", 0, "connection: 2 bytes read"),
        (OK + b"Content-Length: 5\r\n\r\nab", 0, "connection: 2 bytes read"),
    ],
)
def test_servers_that_fail(answer: bytes, status: int, error: str) -> None:
    result, _ = asyncio.run(against(answer))
    assert result.status == status
    assert result.error.startswith(error)


def test_a_client_that_leaves_hangs_up() -> None:
    async def scenario() -> tuple[RequestRecord, bytes]:
        left = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(OK + b"\r\n" + token("a"))
            left.set_result(await reader.read())  # ends when the client has gone
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            post = partial(Server(address).request, "POST", "/")
            result = await send(post, REQUEST, 0.25, leaves=True)
            return result, await asyncio.wait_for(left, PATIENCE)

    result, rest = asyncio.run(scenario())
    assert (result.status, result.error, rest) == (0, "left", b"")


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:99999", "http://a:x"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(ConfigError, match="base URL"):
        Server(address)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="is the server running"):
        asyncio.run(fetch_json(Server("http://127.0.0.1:9"), "/v1/models"))


# ---- The command.

# What scripts that read the results of vLLM's serving benchmark look for.
VLLM_NAMES = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
    "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests",
    *(f"{of}_{name}_ms" for of in ("mean", "median", "std", "p50", "p90", "p99") for name in LATENCIES),
}  # fmt: skip
DETAILS = {"input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"}


class Model(BaseHTTPRequestHandler):
    """Answers with one token for each that is asked for, and refuses long prompts."""

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply(200, b'{"data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        length, tokens = len(body["prompt"]), body["max_tokens"]
        assert (body["model"], body["stream"], body["ignore_eos"]) == ("tiny", True, True)
        if length > 10:
            self.reply(429, b'{"error": {"message": "full"}}')
        else:
            self.reply(200, b"".join(token() for _ in range(tokens)) + token("", "length") + usage(length, tokens))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        command = ["bench", "serve", "--base-url", f"http://127.0.0.1:{server.server_port}", "--ignore-eos"]
        load = ["--num-prompts", "6", "--random-output-len", "4", "--max-concurrency", "2", "--request-rate", "500"]
        try:
            code = main([*command, *load, "--random-input-len", "5", "--json", str(output), "--save-detailed"])
            refused = main([*command, *load, "--random-input-len", "11"])
        finally:
            server.shutdown()
            thread.join()
    result = json.loads(output.read_text())
    assert code == 0
    assert set(result) >= VLLM_NAMES | DETAILS
    assert (result["model_id"], result["completed"], result["failed"], result["request_rate"]) == ("tiny", 6, 0, 500)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 24)
    assert result["generated_texts"] == ["xxxx"] * 6
    assert 1 <= result["max_concurrent_requests"] <= 2
    written = capsys.readouterr()
    assert "6 completed, 0 failed" in written.out
    assert refused == 2
    assert "the first request failed: status 429: full" in written.err


@pytest.mark.parametrize(
    "option", [["--num-prompts", "0"], ["--max-concurrency", "0"], ["--extra-body", "[]"], ["--timeout", "0"]]
)
def test_wrong_options(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *option]) == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_result_that_cannot_be_written_is_refused_before_the_run(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "none" / "result"):
        assert main(["bench", "serve", "--base-url", "http://127.0.0.1:1", option, str(path)]) == 2
        assert f"{path}: cannot be written" in capsys.readouterr().err


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from llm_boost.bench_serve.plot import plot

    records = [record(0.0, [0.5, 1.0, 1.5], 3), record(1.0, [1.25, 3.25], 5), record(1.5, [1.75], 0, 429, "full")]
    result = {"model_id": "tiny", "num_prompts": 3, **summarize(records, 3.25, {})}
    plot(tmp_path / "plot.png", result, records)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot(tmp_path / "plot.unknown", result, records)
