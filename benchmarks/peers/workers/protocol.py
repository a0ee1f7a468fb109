"""What every worker speaks: requests and answers, a line of JSON each, on standard input and output.

A worker runs in the virtual environment of one engine and imports nothing of the harness but this file. It loads a
model when it starts, says how long that took, and then measures whatever it is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

VOCAB = 1000  # prompts hold tokens below this: every model has them


class Engine(ABC):
    """A loaded model. All times are in seconds; every decoding is greedy and ignores end-of-text tokens."""

    @abstractmethod
    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """The answer to one prompt."""

    @abstractmethod
    def prefill(self, prompts: list[list[int]]) -> float:
        """Time until all prompts have their first token."""

    @abstractmethod
    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Time that the tokens after each first one take."""

    def facts(self) -> dict[str, object]:
        """What the harness wants to know about the loaded model."""
        return {}

    def margin(self, prompt: list[int], token: int, other: int) -> float:
        """How much the logit of one next token is above that of another."""
        raise NotImplementedError


class WholeAnswers(Engine):
    """An engine that is seen from outside only: prompts go in, answers come out."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """The answers to some prompts that start together."""

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        return list(self.generate([prompt], num_tokens)[0])

    def prefill(self, prompts: list[list[int]]) -> float:
        return self._seconds(prompts, 1)

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        return self._seconds(prompts, num_tokens) - self._seconds(prompts, 1)

    def _seconds(self, prompts: list[list[int]], num_tokens: int) -> float:
        started = time.perf_counter()
        self.generate(prompts, num_tokens)
        return time.perf_counter() - started


def prompts_of(length: int, batch: int, seed: int) -> list[list[int]]:
    """Random prompts; those of another seed share no prefix with these."""
    source = random.Random(seed)
    return [[source.randrange(VOCAB) for _ in range(length)] for _ in range(batch)]


def _answer(engine: Engine, request: dict[str, object]) -> dict[str, object]:
    if request["do"] == "greedy":
        return {"tokens": engine.greedy(request["prompt"], request["num_tokens"])}
    if request["do"] == "margin":
        return {"margin": engine.margin(request["prompt"], request["token"], request["other"])}
    prompts = prompts_of(request["prompt"], request["batch"], request["seed"])
    if request["do"] == "prefill":
        return {"seconds": engine.prefill(prompts)}
    return {"seconds": engine.decode(prompts, request["generate"])}


def serve(load: type[Engine]) -> None:
    """Loads the model that the command line names, and answers until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # Engines print what they like: to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer: dict[str, object]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers.write(json.dumps(answer | {"peak_bytes": peak}) + "\n")
        answers.flush()

    started = time.perf_counter()
    engine = load(arguments.model, arguments.threads)
    send({"load_seconds": time.perf_counter() - started, "facts": engine.facts()})
    for line in sys.stdin:
        send(_answer(engine, json.loads(line)))
