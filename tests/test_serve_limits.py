"""What the server makes of requests that are too large, too slow, or made to take its time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
from serving import TestServer, serving

from llm_boost import Model
from llm_boost._json import parse_json_object
from llm_boost.errors import RequestError
from llm_boost.serve.middleware import MAX_HEADER_BYTES
from llm_boost.serve.refusal import RefusingProtocol

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ONE = {"prompt": "a", "max_tokens": 1, "temperature": 0}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Iterator[Model]:
    with Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=4, use_tqdm=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[TestServer]:
    with serving(model, max_stop_chars=10) as running:
        yield running


def connect(server: TestServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=120)


def answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """What comes until the server closes the connection."""
    data = b""
    while part := client.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def server_end(server: TestServer, client: socket.socket) -> RefusingProtocol:
    """What the server has of a connection."""
    until = time.monotonic() + 60
    while True:
        for connection in tuple(server.server.server_state.connections):
            if isinstance(connection, RefusingProtocol) and connection.client == client.getsockname():
                return connection
        assert time.monotonic() < until


def run_out_of_time(
    server: TestServer, client: socket.socket, has_come: Callable[[RefusingProtocol], bool] = lambda _: True
) -> None:
    """Acts as if the deadline of a connection that has come so far were now."""
    connection = server_end(server, client)
    until = time.monotonic() + 60
    while connection._deadline is None or not has_come(connection):
        assert time.monotonic() < until
    assert connection._deadline.when() <= connection.loop.time() + 60
    connection.loop.call_soon_threadsafe(connection._give_up, 60.0)


class TestTime:
    """Nobody holds a connection, or the event loop, for long."""

    @pytest.mark.parametrize(
        "sent",
        [
            b"POST /v1/comp",
            HEAD,
            HEAD + b"Content-Length: 50\r\n\r\n{",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
        ],
    )
    def test_a_request_that_does_not_end_is_ended(self, server: TestServer, sent: bytes) -> None:
        with connect(server) as client:
            client.sendall(sent)
            run_out_of_time(server, client, lambda c: c._is_within_head() or c.conn.our_state is h11.SEND_RESPONSE)
            status, error = answer(client)
        assert (status, error["code"]) == (408, "request_timeout")
        assert "did not arrive within 60 s" in error["message"]

    def test_so_is_a_connection_that_says_nothing(self, server: TestServer) -> None:
        with connect(server) as client:
            run_out_of_time(server, client)
            assert client.recv(1000) == b""

    def test_and_a_body_that_nobody_reads(self, server: TestServer) -> None:
        with connect(server) as client:
            client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            run_out_of_time(server, client, lambda c: c.conn.our_state is h11.DONE)
            assert answer(client)[0] == 404  # and no second answer

    def test_an_answer_may_take_longer(self, server: TestServer) -> None:
        data = json.dumps({"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
        with connect(server) as client:
            client.sendall(HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            assert client.recv(1)
            assert server_end(server, client)._deadline is None

    def test_a_key_that_is_there_twice_is_found_at_once(self) -> None:
        """Not by counting each of the keys, which took minutes."""
        keys = [f'"k{i}": 0' for i in range(100_000)]
        data = f"{{{', '.join([*keys, keys[-1]])}}}".encode()
        with pytest.raises(RequestError) as caught:
            parse_json_object(data, "the body", RequestError)
        assert str(caught.value) == "the body: has the key 'k99999' twice"

    def test_large_bodies_are_parsed_off_the_event_loop(
        self, server: TestServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[str] = []

        def parse(*arguments: Any) -> dict[str, Any]:
            threads.append(threading.current_thread().name)
            return parse_json_object(*arguments)

        monkeypatch.setattr("llm_boost.serve.app.parse_json_object", parse)
        for metadata in ("", "a" * 20_000):
            assert server.post("/v1/completions", {**ONE, "metadata": metadata}).status == 200
        assert threads[0] == server.thread.name
        assert threads[1].startswith("llm-boost-worker")


class TestSize:
    """What is too large is refused with the right status, as early as it is known."""

    def test_a_length_that_is_too_large_is_not_waited_for(self, server: TestServer) -> None:
        with connect(server) as client:
            client.sendall(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n")
            status, error = answer(client)
        assert (status, error["code"]) == (413, "body_too_large")

    def test_headers_that_come_in_parts(self, server: TestServer) -> None:
        with connect(server) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall((b"GET /health HTTP/1.1\r\nHost: x\r\nX: ").ljust(MAX_HEADER_BYTES + 1, b"a"))
            status, error = answer(client)
        assert (status, error["code"]) == (431, "headers_too_large")

    @pytest.mark.parametrize("stop", ["a" * 11, ["b", "a" * 11]])
    def test_stop_strings(self, server: TestServer, stop: object) -> None:
        for path, body in (
            ("/v1/completions", {**ONE, "stop": stop}),
            ("/generate", {"inputs": "a", "parameters": {"stop": [stop] if isinstance(stop, str) else stop}}),
        ):
            reply = server.post(path, body)
            assert reply.status == 400
            assert "stop has a string of 11 characters, expected at most 10" in reply.error()["message"]
        assert server.post("/v1/completions", {**ONE, "stop": "a" * 10}).status == 200


def test_a_client_that_leaves_within_its_body_is_no_failure(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "llm_boost.serve"):
        with connect(server) as client:
            client.sendall(HEAD + b"X-Request-Id: left\r\nContent-Length: 50\r\n\r\n{")
        while not any(getattr(record, "fields", {}).get("request_id") == "left" for record in caplog.records):
            assert server.get("/health").status == 200
    assert {record.levelname for record in caplog.records} <= {"INFO", "DEBUG"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ""}, None),  # "the prompt is empty"
        ("/v1/completions", b"{", None),
        ("/v1/completions", {**ONE, "top_pp": 1}, "top_pp"),
        ("/v1/completions", {**ONE, "stream_options": {}}, "stream_options"),
        ("/v1/completions", {**ONE, "logit_bias": {"7": 101}}, "logit_bias"),
        ("/v1/completions", {"prompt": ["a", 5]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "documents": [{}]}, None),
        ("/generate", {"inputs": "a", "parameters": {"top_n_tokens": 2}}, "parameters"),
    ],
)
def test_param_is_a_field_or_nothing(server: TestServer, path: str, body: object, param: str | None) -> None:
    assert server.post(path, body).error()["param"] == param


class TestAnswers:
    """Corners of the answers themselves."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_prompt_alone_generates_nothing(self, server: TestServer, stream: bool) -> None:
        options = {"stream_options": {"include_usage": True}} if stream else {}
        body = {**ONE, "max_tokens": 0, "echo": True, "logprobs": 1, "stream": stream, **options}
        reply = server.post("/v1/completions", {**body, "logit_bias": {"1": 100}})
        events = reply.events() if stream else [reply.json()]
        assert events[-1]["usage"]["completion_tokens"] == 0
        (choice,) = [choice for event in events for choice in event["choices"]]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "length", None)
        assert choice["logprobs"]["tokens"] == ["a"]

    def test_messages_without_content(self, server: TestServer) -> None:
        user = {"role": "user", "content": "a"}
        messages: list[dict[str, Any]] = [
            {"role": "assistant"},
            {"role": "assistant", "content": None, "tool_calls": []},
        ]
        for message in messages:
            reply = server.post("/v1/chat/completions", {"messages": [user, message, user]})
            assert reply.status == 400
            assert "messages[1].content is missing, expected text" in reply.error()["message"]

    def test_schemas_are_objects(self, server: TestServer) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": False}}
        error = server.post("/v1/completions", {**ONE, "response_format": form}).error()
        assert error["message"] == "response_format.json_schema.schema is False, expected an object"

    def test_a_temperature_asks_generate_for_sampling(self, server: TestServer) -> None:
        def text(**parameters: object) -> str:
            body = {"inputs": "abc", "parameters": {"max_new_tokens": 20, "seed": 1, **parameters}}
            generated: str = server.post("/generate", body).json()["generated_text"]
            return generated

        greedy = text()
        assert text(temperature=5.0, do_sample=False) == greedy
        assert text(temperature=5.0) == text(temperature=5.0, do_sample=True) != greedy
