"""Offline batches in OpenAI's file format: many requests from one file, their answers into another.

A line of the input is ``{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}``, with the bodies of the
server's routes. A line of the output is ``{"id": ..., "custom_id": ..., "response": {"status_code": ..., "request_id":
..., "body": {...}}, "error": null}``; lines come in the order in which requests finish.

The output file is its own journal. A line is appended with one write, and its ``id`` says which line of the input it
answers. Whatever ends the process, a line is there as a whole or can be told from one that is, so that the next run
goes on with exactly those that are missing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_boost import _core
from llm_boost._json import parse_json_object
from llm_boost._request import RunningRequest
from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError, LlmBoostError, RequestError
from llm_boost.model import Model
from llm_boost.serve.calls import Call
from llm_boost.serve.chat import ChatCall
from llm_boost.serve.completions import CompletionCall
from llm_boost.serve.errors import as_api_error
from llm_boost.serve.settings import ServerSettings

_ROUTES: Mapping[str, Callable[[Mapping[str, Any], Model, ServerSettings], Call]] = {
    "/v1/chat/completions": ChatCall.from_body,
    "/v1/completions": CompletionCall.from_body,
}
_KEYS = ("custom_id", "method", "url", "body")
_ID = "batch_req_"
# How long a wait for the core lasts before Python looks for signals again, in milliseconds.
_POLL_MS = 50


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line of the input.

    Attributes:
        number: Counted from 1.
        data: Its bytes.
    """

    number: int
    data: bytes

    @property
    def id(self) -> str:
        """What its answer is called."""
        return f"{_ID}{self.number}"


def read_lines(path: Path) -> Iterator[BatchLine]:
    """The lines of an input file that are not blank.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    yield BatchLine(number, data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


# -- The output ----------------------------------------------------------------------------------------------------


class Journal:
    """The output file, held by one process at a time. What an interrupted write left of a line is cut off.

    Attributes:
        done: The ids of the lines that are there, and the custom ids that they answer.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            ConfigError: It cannot be written, another process writes it, or it is no output of a batch.
        """
        self.path = path
        self.done: dict[str, object] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, self._read())
        except OSError as error:
            os.close(self._fd)
            what = "another process writes it" if isinstance(error, BlockingIOError) else error.strerror
            raise ConfigError(f"{path}: cannot be written: {what}") from error
        except ConfigError:
            os.close(self._fd)
            raise

    def _read(self) -> int:
        """Notes what is there; returns where the last whole line ends."""
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    break
                end += len(data)
                answer = parse_json_object(data, f"{self.path}:{number}", ConfigError)
                line_id = answer.get("id")
                if not isinstance(line_id, str) or not line_id.startswith(_ID) or line_id in self.done:
                    raise ConfigError(f"{self.path}:{number}: is no answer of a batch; give another output, or --force")
                self.done[line_id] = answer.get("custom_id")
        return end

    def append(self, answer: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            ConfigError: It cannot be written as a whole: the disk is full, for one.
        """
        data = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from error
        if written != len(data):
            raise ConfigError(
                f"{self.path}: cannot be written: only {written} of {len(data)} bytes fit; free some space"
            )
        self.done[answer["id"]] = answer["custom_id"]

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._fd)
        os.close(self._fd)


def missing_lines(lines: Iterable[BatchLine], journal: Journal) -> Iterator[BatchLine]:
    """The lines of the input that have no answer yet.

    Raises:
        ConfigError: Two lines have the same custom id, or the answers that are there are those of another input.
    """
    unknown = set(journal.done)
    numbers: dict[object, int] = {}
    for line in lines:
        custom_id = _custom_id(line)
        if custom_id is not None and (first := numbers.setdefault(custom_id, line.number)) != line.number:
            raise ConfigError(f"lines {first} and {line.number} of the input have the same custom_id {custom_id!r:.60}")
        if line.id not in unknown:
            yield line
            continue
        unknown.remove(line.id)
        if custom_id != journal.done[line.id]:
            raise ConfigError(
                f"{journal.path}: '{line.id}' answers {journal.done[line.id]!r:.60}, but line {line.number} of the "
                f"input is {custom_id!r:.60}: it belongs to another input; give another output, or --force"
            )
    if unknown:
        raise ConfigError(
            f"{journal.path}: has '{min(unknown)}', which the input does not have: it belongs to another input; "
            "give another output, or --force"
        )


def _custom_id(line: BatchLine) -> object:
    """The line's custom id, None where it has none, or is no JSON."""
    try:
        found = parse_json_object(line.data, "", RequestError).get("custom_id")
    except RequestError:
        return None
    return found if isinstance(found, str) else None


# -- The requests --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Job:
    """A line that the engine works on."""

    line: BatchLine
    custom_id: str
    call: Call
    requests: list[RunningRequest]

    @property
    def num_samples(self) -> int:
        return self.call.params.n * len(self.requests)


class BatchRunner:
    """Keeps the engine busy with the lines of a batch; the engine decides what it computes together.

    Attributes:
        num_failed: Lines whose answer is an error.
    """

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        """Takes a loaded model, and the limits of a server."""
        self.num_failed = 0
        self._model = model
        self._settings = settings
        self._queue = _core.OutputQueue()
        self._live: dict[int, tuple[_Job, RunningRequest]] = {}  # by id in the core
        self._num_samples = 0  # of live jobs
        # Twice what is computed at once: the engine always has the next ones at hand.
        self._max_samples = 2 * model.info().max_num_seqs

    def run(self, lines: Iterator[BatchLine]) -> Iterator[dict[str, Any]]:
        """Yields the answer of each line as it is finished.

        Raises:
            BackendError: The engine failed.
        """
        more = True
        try:
            while more or self._live:
                while more and self._num_samples < self._max_samples:
                    line = next(lines, None)
                    more = line is not None
                    if line is not None and (answer := self._begin(line)) is not None:
                        yield answer
                for event in self._queue.pop(_POLL_MS) if self._live else ():
                    if (answer := self._take(event)) is not None:
                        yield answer
        finally:
            self._model.core.cancel_all(self._queue)

    def _begin(self, line: BatchLine) -> dict[str, Any] | None:
        """Submits the requests of a line; returns its answer if that is an error."""
        custom_id = _custom_id(line)
        try:
            custom_id, call = self._parse(line)
            requests = [
                self._model.new_request(p.token_ids, call.params, text=p.text) for p in call.encode(self._model)
            ]
            for request in requests:
                request.check(self._model.core)
        except LlmBoostError as error:
            return self._failure(line, custom_id, error)
        job = _Job(line, custom_id, call, requests)
        self._num_samples += job.num_samples
        for request in requests:
            self._live[request.submit(self._model.core, self._queue)] = (job, request)
        return None

    def _parse(self, line: BatchLine) -> tuple[str, Call]:
        if len(line.data) > self._settings.max_body_bytes:
            raise RequestError(f"the line has {len(line.data)} bytes, expected at most {self._settings.max_body_bytes}")
        entry = parse_json_object(line.data, f"line {line.number}", RequestError)
        if unknown := [key for key in entry if key not in _KEYS]:
            raise RequestError(unknown_name("key of a batch line", unknown[0], _KEYS))
        if not isinstance(entry.get("custom_id"), str):
            raise RequestError(f"custom_id is {entry.get('custom_id')!r:.40}, expected text")
        if entry.get("method", "POST") != "POST":
            raise RequestError(f"method is {entry['method']!r:.40}, expected 'POST'")
        url = entry.get("url")
        if not isinstance(url, str) or url not in _ROUTES:
            raise RequestError(unknown_name("url", str(url)[:60], _ROUTES))
        body = entry.get("body")
        if not isinstance(body, dict):
            raise RequestError(f"body is {body!r:.40}, expected an object")
        names = self._settings.served_model_names
        if (name := body.get("model", names[0])) not in names:
            raise RequestError(f"model is {name!r:.60}, but this batch runs {' or '.join(names)}")
        call = _ROUTES[url](body, self._model, self._settings)
        if call.streams:
            raise RequestError("stream is true, but the answers of a batch are written as a whole; leave it out")
        return entry["custom_id"], call

    def _take(self, event: _core.TokenEvent) -> dict[str, Any] | None:
        """Adds an event to its request; returns the answer of the line if that is complete."""
        if event.request not in self._live:
            return None  # ended by a stop string or an error before the core knew
        job, request = self._live[event.request]
        try:
            request.take(event)
        except LlmBoostError as error:
            self._forget(job)
            return self._failure(job.line, job.custom_id, error)
        if not all(request.finished for request in job.requests):
            return None
        self._forget(job)
        body = job.call.response(self._model, [r.result(str(i)) for i, r in enumerate(job.requests)])
        return _answer(job.line, job.custom_id, 200, body["id"], body)

    def _forget(self, job: _Job) -> None:
        for request_id in [request_id for request_id, (owner, _) in self._live.items() if owner is job]:
            if not self._live.pop(request_id)[1].finished:
                self._model.core.cancel(request_id)
        self._num_samples -= job.num_samples

    def _failure(self, line: BatchLine, custom_id: object, error: LlmBoostError) -> dict[str, Any]:
        self.num_failed += 1
        failure = as_api_error(error)
        return _answer(line, custom_id, failure.status, line.id, failure.body())


def _answer(
    line: BatchLine, custom_id: object, status: int, request_id: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": line.id, "custom_id": custom_id, "response": response, "error": None}
