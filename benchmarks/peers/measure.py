"""Measures ours and a peer in turn, and remembers every measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog import Peer, Task
from prepare import WORKERS, library_of

CHECKED_TOKENS = 32
# "How to sleep well: 1. Keep a regular schedule. ...", of whose continuation SmolLM2 is sure.
CHECKED_PROMPT = [
    *(2020, 288, 2801, 876, 42, 1116, 33, 30, 5545, 253, 2649),
    *(8034, 30, 198, 34, 30, 9124, 14674, 30, 198, 35, 30),
]


class WorkerError(Exception):
    """A worker ended before it answered."""


class Worker:
    """An engine in a process of its own, with a model loaded."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                text=True,
            )
        ready = self._answer()
        self.load_seconds: float = ready["load_seconds"]
        self.facts: dict[str, int] = ready["facts"]
        self.peak_bytes: int = ready["peak_bytes"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise WorkerError(f"{self.name} ended with code {self._process.wait()}; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def _ask(self, **request: object) -> dict[str, Any]:
        if self._process.stdin is None:
            raise WorkerError(f"{self.name} takes no requests")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def greedy(self) -> list[int]:
        """The answer to the prompt that all engines are compared on."""
        tokens: list[int] = self._ask(do="greedy", prompt=CHECKED_PROMPT, num_tokens=CHECKED_TOKENS)["tokens"]
        return tokens

    def margin(self, answer: list[int], token: int, other: int) -> float:
        """How much the logit of one token is above that of another after a beginning of that answer."""
        return float(self._ask(do="margin", prompt=CHECKED_PROMPT + answer, token=token, other=other)["margin"])

    def seconds(self, task: Task, seed: int) -> float:
        """Times a task once."""
        do = "prefill" if task.generate == 1 else "decode"
        request = {"prompt": task.prompt, "generate": task.generate, "batch": task.batch, "seed": seed}
        return float(self._ask(do=do, **request)["seconds"])

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared: ours and a peer on a model."""

    commit: str
    model: str
    peer: str
    threads: int


class Store:
    """Measurements, a line of JSON each, appended as they are made: a run that is cut off goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def of(self, pair: Pair, kind: str | None = None) -> list[dict[str, Any]]:
        """Rows about one pair: of one kind, or of all."""
        wanted = asdict(pair) | ({} if kind is None else {"kind": kind})
        return [row for row in self.rows if wanted.items() <= row.items()]

    def add(self, pair: Pair, kind: str, **facts: object) -> None:
        """Appends a row."""
        row = asdict(pair) | {"kind": kind} | facts
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def alone(command: str) -> Iterator[None]:
    """Keeps `command`, with a program that waits as its last argument, running meanwhile; "" for nothing."""
    if not command:
        yield
        return
    keeper = subprocess.Popen([*command.split(), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if keeper.stdin is None or keeper.stdout is None:
            raise WorkerError(f"{command} cannot be started")
        keeper.stdin.write(b"x")  # `cat` gives it back when the command has got as far as starting it
        keeper.stdin.flush()
        keeper.stdout.read(1)
        yield
    finally:
        keeper.communicate()


def start_ours(peer: Peer, model: Path, threads: int, log: Path) -> Worker:
    """Our own worker, at the instruction set level that is compared."""
    command = [sys.executable, str(WORKERS / "llm_boost_worker.py"), str(model), "--threads", str(threads)]
    return Worker("llm_boost", command, peer.ours, log)


def start_peer(peer: Peer, python: Path, home: Path, model: Path, threads: int, log: Path) -> Worker:
    """The peer's worker, in its own environment."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    environment = {name: value.format(threads=threads, cores=cores) for name, value in peer.environment.items()}
    if peer.llama_cpp_flags:
        environment["LLAMA_CPP_LIB_PATH"] = str(library_of(home, peer))
    command = [str(python), str(WORKERS / peer.worker), str(model), "--threads", str(threads)]
    return Worker(peer.name, command, environment, log)


def compare(
    pair: Pair, tasks: Sequence[Task], ours: Worker, theirs: Worker, store: Store, rounds: int, quietly: str
) -> None:
    """Checks the answers, then times every task in turns: ours, theirs, ours, theirs."""
    if not store.of(pair, "greedy"):
        for worker in (ours, theirs):
            store.add(pair, "load", engine=worker.name, seconds=worker.load_seconds)
        with alone(quietly):
            expected, found = ours.greedy(), theirs.greedy()
        equal = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), len(found))  # noqa: B905
        margin = ours.margin(expected[:equal], expected[equal], found[equal]) if equal < len(found) else None
        store.add(pair, "greedy", equal=equal, of=len(expected), margin=margin, ours=expected, theirs=found)
    for task in tasks:
        done = sum(row["task"] == task.name for row in store.of(pair, "time"))
        if done < rounds:  # warm up
            with alone(quietly):
                for worker in (ours, theirs):
                    worker.seconds(task, seed=0)
        for turn in range(done, rounds):
            with alone(quietly):
                seconds = [worker.seconds(task, seed=turn + 1) for worker in (ours, theirs)]
            store.add(pair, "time", task=task.name, tokens=task.tokens(), ours=seconds[0], theirs=seconds[1])
    if not store.of(pair, "memory"):
        for worker in (ours, theirs):
            store.add(pair, "memory", engine=worker.name, bytes=worker.peak_bytes)
