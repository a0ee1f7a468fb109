"""``llm-boost run``: answer one prompt, or chat."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass

from llm_boost.cli.options import (
    EXIT_INTERRUPTED,
    add_loading_options,
    add_sampling_options,
    load_model,
    sampling_params,
)
from llm_boost.model import Message, Model, Prompt
from llm_boost.sampling_params import SamplingParams

SUMMARY = "answer a prompt, or chat when none is given"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model directory, or the name of a pulled model")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="'-' reads it from standard input; without it, an interactive chat"
    )
    parser.add_argument("--system", help="system message of the chat")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as it is, without the chat template")
    add_sampling_options(parser)
    add_loading_options(parser)


@dataclass(slots=True)
class _Timing:
    """Seconds and tokens of all answers so far, and whether one was interrupted."""

    load_seconds: float
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    decode_seconds: float = 0.0
    interrupted: bool = False

    def report(self) -> str:
        prefill = self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0
        decode = self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0
        return (
            f"load {self.load_seconds:.2f} s | prefill {self.prompt_tokens} tokens, {prefill:.1f} tokens/s | "
            f"decode {self.new_tokens} tokens, {decode:.1f} tokens/s"
        )


def main(arguments: argparse.Namespace) -> int:
    """Loads the model, streams answers, and ends with load time and speeds."""
    started = time.perf_counter()
    with load_model(arguments) as model:
        timing = _Timing(time.perf_counter() - started)
        params = sampling_params(arguments, model)
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
        chats = not arguments.raw and model.tokenizer.chat_template is not None
        if prompt is None:
            _chat(model, params, arguments.system, timing, use_template=chats)
        elif chats:
            _answer(model, [*_system(arguments.system), {"role": "user", "content": prompt}], params, timing)
        else:
            _answer(model, prompt, params, timing)
        print(timing.report(), file=sys.stderr)
    return EXIT_INTERRUPTED if timing.interrupted and prompt is not None else 0


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]


def _chat(model: Model, params: SamplingParams, system: str | None, timing: _Timing, *, use_template: bool) -> None:
    """Reads lines until the end of input. Ctrl-C ends an answer, Ctrl-D the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history, where it is installed
    print(f"{model.info().backend}. Ctrl-C ends an answer, Ctrl-D the chat.", file=sys.stderr)
    messages = _system(system)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if not line.strip():
            continue
        if not use_template:
            _answer(model, line, params, timing)
            continue
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": _answer(model, messages, params, timing)})


def _answer(model: Model, prompt: Prompt, params: SamplingParams, timing: _Timing) -> str:
    """Streams one answer to standard output and returns it; what came before an interruption counts."""
    text: list[str] = []
    token_ids = model.encode_prompt(prompt)
    started = time.perf_counter()
    before = model.stats()["prompt_tokens"]
    first = 0.0
    try:
        for piece in model.stream(token_ids, params):
            now = time.perf_counter()
            if not first:
                first = now
                timing.prompt_tokens += model.stats()["prompt_tokens"] - before
                timing.prompt_seconds += first - started
            else:
                timing.new_tokens += len(piece.token_ids)
            print(piece, end="", flush=True)
            text.append(piece.text)
    except KeyboardInterrupt:
        timing.interrupted = True
    if first:
        timing.decode_seconds += time.perf_counter() - first
    print()
    return "".join(text)
