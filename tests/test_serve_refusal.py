"""A full server answers from a request's first bytes what it would answer after parsing it."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import TestServer, serving
from starlette.responses import Response

from llm_boost import Model
from llm_boost.serve.refusal import Refusals

KEY = "secret"
BODY = b'{"prompt": "x", "max_tokens": 1}'


@pytest.fixture(scope="module")
def full(tiny_model: Callable[[str], Path]) -> Iterator[TestServer]:
    """A server with a key and names of its own, which stays as full as it can be."""
    with (
        pytest.MonkeyPatch.context() as patch,
        Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=2, use_tqdm=False) as model,
        serving(model, max_queue=1, api_key=KEY, allowed_hosts=("here",)) as server,
    ):
        patch.setattr("llm_boost.serve.refusal._LOG_SECONDS", 3600)  # tests say when it logs
        server.state.admission.admit(3)
        yield server
        server.state.admission.release(3)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at a request ended in a refusal; what is refused otherwise was parsed."""
    found: list[bool] = []
    real = Refusals.answer

    def answer(self: Refusals, data: bytes) -> tuple[Response, int] | None:
        refusal = real(self, data)
        found.append(refusal is not None)
        return refusal

    monkeypatch.setattr(Refusals, "answer", answer)
    return found


def request(path: str = "/v1/completions", body: bytes = BODY, **headers: str) -> bytes:
    """The bytes of a request with the right host, key and length, unless they are given; an empty one is left out."""
    fields = {"Host": "here", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    fields |= {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value), "", ""]
    return "\r\n".join(lines).encode() + body


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer with a length."""
    with client.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := file.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers, file.read(int(headers["content-length"]))


def exchange(server: TestServer, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends pieces, each when the one before must have arrived by itself, and reads one answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        return read_answer(client)


PLAIN = [
    request(),
    request("/v1/chat/completions", b"no JSON"),
    request("/generate_stream", b""),
    request("/tokenize", X_Request_Id="mine", Accept="*/*", X_Stainless_Lang="python"),
    request(Connection="keep-alive"),
]
CLOSER_LOOK = [
    request(Host="elsewhere"),
    request(Host=""),
    request(Authorization="Bearer wrong"),
    request(Authorization=""),
    request("/v1/nothing"),
    request("/v1/models"),
    request("/v1/completions?x=1"),
    request(Connection="close"),
    request(Origin="https://example.org"),
    request(body=b"2\r\n{}\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"),
    request(Content_Length="-1"),
    request(body=b"", Content_Length="1" * 30, Connection="close"),
    request().replace(b"Host: here\r\n", b"Host: here\r\nHost: here\r\n"),
    request().replace(b"Host: here\r\n", b"Host : here\r\n"),
    request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    request(X_Long="x" * 70_000),
]


@pytest.mark.parametrize("sent", PLAIN)
def test_plain_requests_are_refused_from_their_bytes(full: TestServer, answered: list[bool], sent: bytes) -> None:
    got = exchange(full, sent)
    assert answered == [True]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refusals, "answer", lambda self, data: None)
        usual = exchange(full, sent)
    assert got[0] == usual[0] == 429
    assert got[2] == usual[2]
    assert got[1].keys() == usual[1].keys()
    assert all(got[1][name] == usual[1][name] for name in got[1] if name not in ("date", "x-request-id"))
    assert (got[1]["x-request-id"] == "mine") == (b"X-Request-Id: mine" in sent)


@pytest.mark.parametrize("sent", CLOSER_LOOK)
def test_others_get_what_they_get_anyway(full: TestServer, answered: list[bool], sent: bytes) -> None:
    if sent.endswith(b"x" * 70_000 + b"\r\n\r\n" + BODY):
        sent = sent[:66_000]  # refused before all of it has come
    got = exchange(full, sent)
    assert not any(answered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refusals, "answer", lambda self, data: None)
        assert exchange(full, sent)[0] == got[0]


def test_the_body_may_come_later(full: TestServer, answered: list[bool]) -> None:
    """Most clients send head and body apart, and use a connection again."""
    head, body = request().split(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", full.port), timeout=60) as client:
        for _ in range(3):
            client.sendall(head + b"\r\n\r\n")
            assert read_answer(client)[0] == 429  # without waiting for the body
            client.sendall(body[:5])
            client.sendall(body[5:])
        full.state.admission.release(3)
        try:
            client.sendall(request())
            assert read_answer(client)[0] == 200
        finally:
            full.state.admission.admit(3)
        assert answered.count(True) == 3


def test_the_rest_of_a_body_is_not_taken_for_a_request(full: TestServer) -> None:
    inner = request("/detokenize", b"{}")
    with socket.create_connection(("127.0.0.1", full.port), timeout=60) as client:
        client.sendall(request(body=inner)[: -len(inner) + 3])
        assert read_answer(client)[0] == 429
        client.sendall(inner[3:] + request("/v1/nothing"))
        assert read_answer(client)[0] == 404


def test_pipelined_requests_are_answered_in_order(full: TestServer) -> None:
    with socket.create_connection(("127.0.0.1", full.port), timeout=60) as client, client.makefile("rb") as file:
        client.sendall(request(X_Request_Id="a") + request("/v1/nothing", X_Request_Id="b", Connection="close"))
        answers = file.read().split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"429", b"404"]
    assert b"x-request-id: a" in answers[0].lower()


def test_what_is_not_http_gets_an_error_of_the_usual_shape(full: TestServer) -> None:
    status, headers, body = exchange(full, b"\x16\x03\x01 TLS?\r\n\r\n")
    assert (status, headers["connection"]) == (400, "close")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_refusals_are_counted_and_their_number_logged(full: TestServer, caplog: pytest.LogCaptureFixture) -> None:
    refusals: Refusals = full.server.config.app.state.refusals  # type: ignore[union-attr]
    before = full.get("/metrics", Host="here", Authorization=f"Bearer {KEY}").body
    refusals._log()
    caplog.clear()
    for _ in range(3):
        assert exchange(full, request())[0] == 429
    after = full.get("/metrics", Host="here", Authorization=f"Bearer {KEY}").body

    def count(page: bytes) -> float:
        (line,) = [x for x in page.splitlines() if x.startswith(b"vllm:admission_rejections_total")]
        return float(line.split()[-1])

    assert count(after) - count(before) == 3
    with caplog.at_level(logging.INFO, "llm_boost.serve"):
        refusals._log()
    logged = [record.fields for record in caplog.records if record.message == "refused"]  # type: ignore[attr-defined]
    assert logged == [{"status": 429, "requests": 3}]
