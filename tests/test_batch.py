"""Offline batches: every line is answered once, whatever happens to the process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reference.tiny_models import TINY_SPECS, write_tiny_model

pytest.importorskip("starlette", reason="the serve extra is not installed")

from llm_boost import Model, SamplingParams
from llm_boost.batch import BatchLine, BatchRunner, Journal, missing_lines, read_lines
from llm_boost.cli import main
from llm_boost.errors import ConfigError
from llm_boost.serve.settings import ServerSettings

NAMES = ("tiny",)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", TINY_SPECS["llama_mha"])


@pytest.fixture(scope="module")
def model(directory: Path) -> Iterator[Model]:
    with Model.from_pretrained(directory, max_num_seqs=4, use_tqdm=False) as model:
        yield model


def completion(number: int, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": f"number {number}", "max_tokens": 1 + number % 7, "temperature": 0, **body},
    }


def chat(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"number {number}"}]
    common = completion(number)["body"]
    del common["prompt"]
    return completion(number) | {"url": "/v1/chat/completions", "body": {**common, "messages": messages, **body}}


def write(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def answers_of(path: Path) -> dict[str, Any]:
    """The answers by id, none of which may be there twice."""
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {answer["id"]: answer for answer in answers}
    assert len(by_id) == len(answers)
    return by_id


def run(model: Model, entries: list[Any]) -> list[dict[str, Any]]:
    """The answers in the order of the input."""
    lines = [BatchLine(n, e.encode() if isinstance(e, str) else json.dumps(e).encode()) for n, e in enumerate(entries)]
    answers = {answer["id"]: answer for answer in BatchRunner(model, settings()).run(iter(lines))}
    assert len(answers) == len(entries)
    return [answers[line.id] for line in lines]


def settings() -> ServerSettings:
    return ServerSettings(served_model_names=NAMES)


def text_of(answer: dict[str, Any]) -> list[str]:
    choices = answer["response"]["body"]["choices"]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]


# Answers


def test_answers_are_the_engines(model: Model) -> None:
    """More lines than the engine computes at once, with several prompts and samples in some."""
    entries = [completion(n) for n in range(30)]
    entries[5]["body"] |= {"prompt": ["one", "two", "three"], "n": 2, "temperature": 1.5, "seed": 3, "ignore_eos": True}
    entries[6] = chat(6)
    entries[7]["body"] |= {"stop": "number", "max_tokens": 40}
    answers = run(model, entries)
    for entry, answer in zip(entries, answers, strict=True):
        assert answer["custom_id"] == entry["custom_id"]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"] == answer["response"]["body"]["id"]
    for number in (0, 13, 29):
        params = SamplingParams(temperature=0, max_tokens=1 + number % 7)
        assert text_of(answers[number]) == [model.generate(f"number {number}", params)[0].outputs[0].text]
    assert len(text_of(answers[5])) == 6
    assert answers[5]["response"]["body"]["usage"]["completion_tokens"] == 3 * 2 * entries[5]["body"]["max_tokens"]
    expected = model.chat([entries[6]["body"]["messages"]], SamplingParams(temperature=0, max_tokens=7))
    assert text_of(answers[6]) == [expected[0].outputs[0].text]
    assert model.stats()["num_running"] == model.stats()["num_waiting"] == 0


WRONG_LINES: dict[str, tuple[Any, str]] = {
    "json": ("{", "is not valid JSON"),
    "list": ("[1]", "is a JSON list, expected an object"),
    "key": ({**completion(0), "metod": "POST"}, "unknown key of a batch line 'metod'; did you mean 'method'"),
    "custom id": ({**completion(0), "custom_id": 5}, "custom_id is 5, expected text"),
    "method": ({**completion(0), "method": "GET"}, "method is 'GET', expected 'POST'"),
    "url": ({**completion(0), "url": "/v1/completion"}, "did you mean '/v1/completions'"),
    "body": ({**completion(0), "body": [1]}, "body is [1], expected an object"),
    "model": (completion(0, model="other"), "model is 'other', but this batch runs tiny"),
    "stream": (completion(0, stream=True), "stream is true"),
    "field": (completion(0, temprature=1), "did you mean 'temperature'"),
    "value": (completion(0, temperature=-1), "temperature is -1"),
    "listed url": ({**completion(0), "url": ["a"]}, "unknown url"),
    "listed model": (completion(0, model=["a"]), "model is ['a']"),
    "long": (completion(0, prompt="x" * 600), "tokens"),
    "huge": (completion(0, prompt="x" * (5 << 20)), "expected at most 4194304"),
}


def test_errors_are_answers(model: Model) -> None:
    entries = [completion(1), *(line for line, _ in WRONG_LINES.values()), completion(2)]
    answers = run(model, entries)
    assert [answer["response"]["status_code"] for answer in answers] == [200, *[400] * len(WRONG_LINES), 200]
    for name, answer in zip(WRONG_LINES, answers[1:], strict=False):
        assert WRONG_LINES[name][1] in answer["response"]["body"]["error"]["message"]
    custom_ids = {name: answer["custom_id"] for name, answer in zip(WRONG_LINES, answers[1:], strict=False)}
    assert custom_ids["json"] is custom_ids["custom id"] is None
    assert custom_ids["url"] == "request-0"


# The output


def test_what_an_interrupted_write_left_is_cut_off(tmp_path: Path) -> None:
    answers = [
        {"id": f"batch_req_{n}", "custom_id": f"request-{n}", "response": "é" * n, "error": None} for n in (1, 2)
    ]
    output = tmp_path / "out.jsonl"
    with Journal(output) as journal:
        journal.append(answers[0])
        whole = output.stat().st_size
        journal.append(answers[1])
    data = output.read_bytes()
    for length in range(whole, len(data) + 1):
        output.write_bytes(data[:length])
        with Journal(output) as journal:
            assert journal.done.keys() == {a["id"] for a in answers[: 1 + (length == len(data))]}
            if length < len(data):
                journal.append(answers[1])
        assert output.read_bytes() == data


def test_an_output_of_something_else_is_refused(tmp_path: Path) -> None:
    lines = list(read_lines(write(tmp_path / "in.jsonl", [completion(1), "", completion(2)])))
    assert [line.number for line in lines] == [1, 3]
    output = tmp_path / "out.jsonl"
    for content, message in [
        ("{}\n", "out.jsonl:1: is no answer of a batch"),
        ("hello\n", "out.jsonl:1: is not valid JSON"),
        ('{"id": "batch_req_1"}\n' * 2, "out.jsonl:2: is no answer of a batch"),
    ]:
        output.write_text(content)
        with pytest.raises(ConfigError, match=message):
            Journal(output)
        assert output.read_text() == content
    for answer, message in [
        ({"id": "batch_req_1", "custom_id": "other"}, "belongs to another input"),
        ({"id": "batch_req_2", "custom_id": "request-2"}, "which the input does not have"),
    ]:
        output.write_text(json.dumps(answer) + "\n")
        with Journal(output) as journal, pytest.raises(ConfigError, match=message):
            list(missing_lines(lines, journal))
    output.unlink()
    twice = list(read_lines(write(tmp_path / "twice.jsonl", [completion(1), completion(1)])))
    with Journal(output) as journal:
        assert list(missing_lines(lines, journal)) == lines
        with pytest.raises(ConfigError, match="lines 1 and 2 of the input have the same custom_id 'request-1'"):
            list(missing_lines(twice, journal))
        with pytest.raises(ConfigError, match="another process writes it"):
            Journal(output)


# The command


def test_the_command(tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [completion(1), completion(2, temperature=-1), chat(3)])
    output = tmp_path / "out.jsonl"
    words = ["batch", str(source), str(output)]
    assert main([*words, str(directory)]) == 0
    assert [a["response"]["status_code"] for _, a in sorted(answers_of(output).items())] == [200, 400, 200]
    assert "1 of 3 requests failed" in capsys.readouterr().err
    before = output.read_bytes()
    assert main([*words, "no-such-model"]) == 0  # nothing is missing, so no model is loaded
    assert output.read_bytes() == before
    assert main([*words, str(directory), "--force"]) == 0
    assert output.read_bytes() != before
    assert answers_of(output).keys() == {"batch_req_1", "batch_req_2", "batch_req_3"}


def test_the_model_may_come_from_the_first_request(tmp_path: Path, directory: Path) -> None:
    source = write(tmp_path / "in.jsonl", [completion(1, model=str(directory)), completion(2)])
    assert main(["batch", str(source), str(tmp_path / "out.jsonl")]) == 0
    answers = answers_of(tmp_path / "out.jsonl").values()
    assert [answer["response"]["status_code"] for answer in answers] == [200, 200]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [completion(1, model=None)])
    for words, message in [
        ([str(tmp_path / "none"), str(tmp_path / "out")], "cannot be read"),
        ([str(source), str(source)], "is the input too"),
        ([str(source), str(tmp_path)], "cannot be written"),
        ([str(source), str(tmp_path / "out")], "body.model is None, expected a model"),
    ]:
        assert main(["batch", *words]) == 2
        assert message in capsys.readouterr().err


KILLED_WHILE_IT_WRITES = """
import os, signal
from llm_boost import batch
from llm_boost.cli import main

lines, write = 0, os.write

def write_or_die(fd, data):
    global lines
    lines += 1
    if lines <= {whole_lines}:
        return write(fd, data)
    write(fd, data[:len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

class Os:  # for the output file alone
    write = staticmethod(write_or_die)
    __getattr__ = staticmethod(lambda name: getattr(os, name))

batch.os = Os()
main()
"""


def test_nothing_is_lost_or_doubled_when_it_is_killed(tmp_path: Path, directory: Path, model: Model) -> None:
    entries = [completion(n, max_tokens=60, ignore_eos=True) for n in range(24)]
    source, output = write(tmp_path / "in.jsonl", entries), tmp_path / "out.jsonl"
    words = ["batch", str(source), str(output), str(directory), "--max-num-seqs", "4"]
    for whole_lines in (3, 8):
        code = KILLED_WHILE_IT_WRITES.format(whole_lines=whole_lines)
        assert subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == -signal.SIGKILL
    assert [line.endswith(b"}\n") for line in output.read_bytes().splitlines(keepends=True)] == [True] * 11 + [False]
    subprocess.run([sys.executable, "-m", "llm_boost", *words], check=True, stderr=subprocess.DEVNULL)
    answers = answers_of(output)
    assert answers.keys() == {f"batch_req_{n + 1}" for n in range(24)}
    for number, entry in enumerate(entries):
        assert answers[f"batch_req_{number + 1}"]["custom_id"] == entry["custom_id"]
        assert answers[f"batch_req_{number + 1}"]["response"]["body"]["usage"]["completion_tokens"] == 60
