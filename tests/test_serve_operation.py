"""How the server behaves among many users: keys, limits, overload, disconnects, shutdown."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Reply, TestServer, serving

from llm_boost import Model, SamplingParams
from llm_boost._request import RunningRequest
from llm_boost.cli import main
from llm_boost.errors import BackendError, ConfigError
from llm_boost.serve import ServerSettings
from llm_boost.serve.engine import AsyncEngine

LONG = {"prompt": "abc", "max_tokens": 500, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Iterator[Model]:
    with Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=4, use_tqdm=False) as loaded:
        yield loaded


KEY = "secret-κλειδί".encode().hex()


@pytest.fixture(scope="module")
def guarded(model: Model) -> Iterator[TestServer]:
    with serving(model, api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def small(model: Model) -> Iterator[TestServer]:
    with serving(model, max_body_bytes=10_000, max_prompts=3) as running:
        yield running


class TestKey:
    """The key guards everything but /health."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"), ("GET", "/version"), ("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/completions"),
            ("POST", "/generate"), ("POST", "/tokenize"), ("GET", "/nowhere"), ("OPTIONS", "/v1/completions"),
            ("GET", "//health"), ("GET", "/health/"), ("GET", "/health/../v1/models"),
        ],
    )  # fmt: skip
    def test_without_the_key_nothing_answers(self, guarded: TestServer, method: str, path: str) -> None:
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}):
            reply = guarded.request(method, path, {} if method == "POST" else None, headers)
            assert reply.status == 401
            assert reply.error()["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"].startswith("Basic" if path == "/" else "Bearer")

    def test_the_page_is_served_under_its_policy(self, guarded: TestServer) -> None:
        page = guarded.get("/", Authorization=f"Bearer {KEY}")
        assert page.status == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]

    def test_with_it_everything_does(self, guarded: TestServer) -> None:
        assert guarded.get("/health").status == 200
        basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
        for value in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
            assert guarded.get("/v1/models", Authorization=value).status == 200
        assert guarded.get("/v1/models", Authorization="Basic !!!").status == 401


class TestLimits:
    """What is too large is refused, whatever it is."""

    def test_body(self, small: TestServer) -> None:
        assert small.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200
        reply = small.post("/v1/completions", {"prompt": "a" * 10_000})
        assert reply.status == 413
        assert reply.error()["code"] == "body_too_large"

    def test_body_without_a_length(self, small: TestServer) -> None:
        with socket.create_connection(("127.0.0.1", small.port), timeout=60) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            client.sendall(b"2710\r\n" + b"a" * 10_000 + b"\r\n5\r\naaaaa\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 413")

    def test_headers(self, small: TestServer) -> None:
        assert small.get("/health", X_Long="a" * 70_000).status == 431

    def test_prompts(self, small: TestServer) -> None:
        assert small.post("/v1/completions", {"prompt": ["a"] * 4}).status == 400

    def test_more_samples_than_ever_fit_are_no_overload(self, model: Model) -> None:
        with serving(model, max_queue=1) as server:
            reply = server.post("/v1/completions", {"prompt": ["a"] * 6, "max_tokens": 1})
            assert reply.status == 400
            assert "at most 5 at once" in reply.error()["message"]

    def test_cors_is_off_unless_asked_for(self, small: TestServer, model: Model) -> None:
        origin = "https://example.org"
        assert "access-control-allow-origin" not in small.get("/version", Origin=origin).headers
        with serving(model, allowed_origins=(origin,), api_key="k") as open_server:
            preflight = open_server.request(
                "OPTIONS", "/v1/completions", None, {"Origin": origin, "Access-Control-Request-Method": "POST"}
            )
            assert preflight.status == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            other = open_server.get("/health", Origin="https://evil.example")
            assert "access-control-allow-origin" not in other.headers

    def test_other_hosts_are_refused_where_some_are_named(self, model: Model) -> None:
        """A page whose name has been made to point here (DNS rebinding) gets nothing."""
        with serving(model, allowed_hosts=("localhost", "127.0.0.1", "::1")) as server:
            for host in ("localhost:8000", "127.0.0.1", "LOCALHOST", "[::1]:80"):
                assert server.get("/version", Host=host).status == 200
            for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::2]", ""):
                assert server.get("/version", Host=host).status == 421

    @pytest.mark.parametrize(
        "values",
        [
            {"served_model_names": ()},
            {"api_key": ""},
            {"api_key": "a\nb"},
            {"api_key": "a "},
            {"max_queue": -1},
            {"max_prompts": 0},
        ],
    )
    def test_settings_are_checked(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            ServerSettings(**{"served_model_names": ("x",), **values})


def read_one_event(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    return response


def open_stream(server: TestServer, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    data = json.dumps({**body, "stream": True}).encode()
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    return connection


class TestManyUsers:
    """Overload, equality of answers, disconnects."""

    def test_a_full_server_refuses_and_recovers(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        short = {"prompt": "x", "max_tokens": 1}
        with serving(model, max_queue=2, retry_after_seconds=7) as server:
            ended: list[int] = []  # no request makes room by its end: the server stays as full as with six long ones
            monkeypatch.setattr(server.state.admission, "release", ended.append)
            assert [server.post("/v1/completions", short).status for _ in range(6)] == [200] * 6
            reply = server.post("/v1/completions", short)
            assert reply.status == 429
            assert reply.headers["retry-after"] == "7"
            assert (reply.error()["type"], reply.error()["code"]) == ("rate_limit_error", "queue_full")
            assert server.post("/v1/completions", b"no JSON").status == 429  # refused before it is looked at
            assert server.get("/health").status == 200
            assert b"vllm:admission_rejections_total" in server.get("/metrics").body
            monkeypatch.undo()
            server.state.admission.release(sum(ended))
            assert server.post("/v1/completions", short).status == 200

    def test_answers_under_load_are_those_alone(self, model: Model) -> None:
        rng = random.Random(7)
        bodies: list[dict[str, Any]] = []
        for i in range(60):
            body = {
                "prompt": "".join(rng.choices("abcdef ", k=rng.randrange(1, 120))),
                "max_tokens": rng.randrange(1, 40),
            }
            bodies.append({**body, "seed": i, "temperature": rng.choice([0, 1]), "stream": i % 2 == 0, "logprobs": 1})
        with serving(model, max_queue=60) as server, ThreadPoolExecutor(20) as pool:
            replies: list[Reply] = list(pool.map(lambda body: server.post("/v1/completions", body), bodies))
        for body, reply in zip(bodies, replies, strict=True):
            assert reply.status == 200, reply.body
            params = SamplingParams(
                temperature=body["temperature"], seed=body["seed"], max_tokens=body["max_tokens"], logprobs=1
            )
            want = model.generate(body["prompt"], params)[0].outputs[0]
            choices = [event["choices"][0] for event in reply.events()] if body["stream"] else reply.json()["choices"]
            assert "".join(choice["text"] for choice in choices) == want.text
            got = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
            assert want.logprobs is not None
            assert got == [entry[t].logprob for entry, t in zip(want.logprobs, want.token_ids, strict=True)]

    def test_disconnects_at_random_moments_leave_nothing_behind(self, model: Model) -> None:
        with serving(model, max_queue=200) as server, ThreadPoolExecutor(16) as pool:

            def leave(seed: int) -> None:
                rng = random.Random(seed)
                body = {**LONG, "stream": rng.random() < 0.5, "n": rng.choice([1, 1, 3])}
                if rng.random() < 0.3:
                    body["structured_outputs"] = {"regex": "[ab]{400}"}
                    del body["ignore_eos"]
                data = json.dumps(body).encode()
                head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                head += f"Content-Length: {len(data)}\r\n\r\n"
                with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
                    message = head.encode() + data
                    client.sendall(message[: rng.randrange(len(message))] if rng.random() < 0.2 else message)
                    client.settimeout(rng.random() * 0.1)
                    try:
                        while client.recv(4096):
                            pass
                    except TimeoutError:
                        pass

            list(pool.map(leave, range(150)))
            server.wait_until_idle()
            assert server.state.engine._live == {}

    def test_a_disconnect_frees_its_blocks_while_others_go_on(self, model: Model) -> None:
        with serving(model) as server:
            leaving = open_stream(server, LONG)
            response = read_one_event(leaving)
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(server.post, "/v1/completions", LONG)
                response.close()
                leaving.close()
                deadline = time.monotonic() + 60
                while server.state.admission.taken > 1:
                    assert time.monotonic() < deadline
                model.stats()  # answered, at the earliest, just before the step that drops it; the next, after
                assert model.stats()["num_running"] <= 1
                assert other.result().json()["usage"]["completion_tokens"] == 500

    def test_a_failing_engine_fails_its_requests_and_goes_on(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real_take, real_batch = RunningRequest.take, AsyncEngine._take
        wait_for_text = False
        has_text, text_is_read = threading.Event(), threading.Event()

        def take(self: RunningRequest, event: Any) -> Any:
            if wait_for_text and not has_text.is_set():
                piece = real_take(self, event)
                if piece is not None and piece.text:
                    has_text.set()
                return piece
            assert not wait_for_text or text_is_read.wait(60)
            raise BackendError("the logits are not numbers")

        def one_by_one(self: AsyncEngine, events: Sequence[Any]) -> None:
            for event in events:  # so that text is on its way before the next token fails
                real_batch(self, [event])

        with serving(model) as server, monkeypatch.context() as patch:
            patch.setattr(RunningRequest, "take", take)
            patch.setattr(AsyncEngine, "_take", one_by_one)
            reply = server.post("/v1/completions", LONG)
            assert reply.status == 500
            assert "not numbers" in reply.error()["message"]
            stream = server.post("/v1/completions", {**LONG, "stream": True})
            assert stream.status == 500  # nothing had been sent yet
            wait_for_text = True
            connection = open_stream(server, LONG)
            response = read_one_event(connection)
            text_is_read.set()
            rest = response.read().decode().split("\n\n")
            assert json.loads(rest[-3].strip().removeprefix("data: "))["error"]["code"] == "engine_error"
            assert rest[-2] == "data: [DONE]"
            connection.close()
            patch.undo()
            assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200

    def test_an_idle_stream_is_kept_open(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        real, pinged = RunningRequest.take, threading.Event()

        def take(self: RunningRequest, event: Any) -> Any:
            assert pinged.wait(120)
            return real(self, event)

        monkeypatch.setattr(RunningRequest, "take", take)
        with serving(model, ping_seconds=0.02) as server:
            connection = open_stream(server, {**LONG, "max_tokens": 2})
            response = connection.getresponse()
            assert response.readline() == b": ping\n"
            pinged.set()
            assert response.read().endswith(b"data: [DONE]\n\n")
            connection.close()


class TestProcess:
    """The command: signals, options, log."""

    @staticmethod
    def start(directory: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "llm_boost", "serve", str(directory), "--port", str(port), *options]
        environment = {**os.environ, "LLM_BOOST_API_KEY": ""}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            if "running on" in line:
                return process, port
        raise AssertionError("the server did not start")

    @staticmethod
    def end(process: subprocess.Popen[str]) -> tuple[int, str]:
        """Waits for the end; gives the exit code and the rest of the log."""
        with process:
            assert process.stderr is not None
            log = process.stderr.read()
        return process.returncode, log

    @staticmethod
    def stream(port: int, max_tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {**LONG, "max_tokens": max_tokens, "stream": True, "prompt": "the secret prompt"}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection, read_one_event(connection)

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
    def test_open_streams_finish(self, tiny_model: Callable[[str], Path], sent: signal.Signals) -> None:
        process, port = self.start(tiny_model("llama_mha"), "--served-model-name", "a", "b")
        connection, response = self.stream(port, 400)
        process.send_signal(sent)
        rest = response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in rest
        connection.close()
        code, log = self.end(process)
        assert code == (0 if sent == signal.SIGTERM else 130), log
        assert "secret" not in log
        records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        (answered,) = [record for record in records if record["event"] == "request"]
        assert answered["status"] == 200
        assert answered["prompt_tokens"] == len("the secret prompt")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()

    def test_after_the_deadline_streams_end_with_an_error(self, smollm2_directory: Path) -> None:
        process, port = self.start(smollm2_directory, "--drain-seconds", "0")
        connection, response = self.stream(port, 4000)  # half a minute's work
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode().split("\n\n")
        assert json.loads(rest[-3].strip().removeprefix("data: "))["error"]["code"] == "shutting_down"
        connection.close()
        code, log = self.end(process)
        assert code == 0, log

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_does_not_wait_for_streams(self, smollm2_directory: Path, sent: signal.Signals) -> None:
        process, port = self.start(smollm2_directory, "--drain-seconds", "3600")
        connection, response = self.stream(port, 4000)
        process.send_signal(sent)
        assert process.stderr is not None
        while "Shutting down" not in process.stderr.readline():
            pass
        process.send_signal(sent)
        rest = response.read().decode().split("\n\n")
        assert json.loads(rest[-3].strip().removeprefix("data: "))["error"]["code"] == "shutting_down"
        connection.close()
        code, log = self.end(process)
        assert code == (0 if sent == signal.SIGTERM else 130), log

    def test_other_machines_need_a_key(
        self, tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LLM_BOOST_API_KEY", raising=False)
        assert main(["serve", str(tiny_model("llama_mha")), "--host", "0.0.0.0"]) == 2
        assert "lets other machines in: set LLM_BOOST_API_KEY, or say --insecure" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prot: 5", "did you mean 'port'?"),
            ("port: many", "port is 'many', expected int"),
            ("[1, 2]", "expected a mapping of keys to values"),
            ("", "the document is empty"),
            ("a: [", "serve.yaml:1: "),
            ("port: 1\nport: 2", "serve.yaml:2: the key 'port' is there twice"),
            ("max-queue: 1\nmax_queue: 2", "serve.yaml:2: max_queue is there already, at "),
            ("port: 1 #" + "#" * (1 << 20), "has more than 256 KiB"),
            ("api_key: 0123", "api_key is 83, which YAML takes for a number; put it in quotes"),
            ("api_key: ''", "api_key is empty"),
            ("metrics_prefix: a b", "metrics_prefix is 'a b', expected letters"),
            ("drain_seconds: inf", "drain_seconds is inf"),
            ("port: 65536", "cannot listen on host '127.0.0.1', port 65536"),
            ("host: 127.0.0.1\nport: {taken}", "cannot listen on host '127.0.0.1', port {taken}: Address already in"),
            ("host: nowhere.invalid\ninsecure: true", "cannot listen on host 'nowhere.invalid'"),
            ("insecure: 3", "insecure is 3, expected true or false"),
            ("log-level: loud", "log_level is 'loud', expected one of debug, info"),
            ("max-queue: -1", "max_queue is -1, expected 0 or more"),
            ("host: 0.0.0.0", "lets other machines in"),
        ],
    )
    def test_config_file(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        text: str,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("LLM_BOOST_API_KEY", raising=False)
        config = tmp_path / "serve.yaml"
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = str(other.getsockname()[1])
            config.write_text(text.replace("{taken}", taken))
            assert main(["serve", "no-such-model", "--config", str(config)]) == 2
        assert message.replace("{taken}", taken) in capsys.readouterr().err

    def test_an_empty_key_is_no_key(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable of the shell that is not set must not open the server."""
        monkeypatch.setenv("LLM_BOOST_API_KEY", "secret")
        assert main(["serve", "no-such-model", "--api-key", ""]) == 2
        assert "api_key is empty" in capsys.readouterr().err

    def test_the_command_line_wins_over_the_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LLM_BOOST_API_KEY", raising=False)
        config = tmp_path / "serve.yaml"
        config.write_text("host: 0.0.0.0\nmax_queue: -5")
        assert main(["serve", "x", "--host", "127.0.0.1", "--max-queue", "-1", "--config", str(config)]) == 2
        assert "max_queue is -1" in capsys.readouterr().err
