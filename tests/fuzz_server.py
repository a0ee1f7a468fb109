"""Random requests for the server: near-valid bodies, mutated fields, broken framing. Nothing may cause a 5xx.

Run as a script for a long campaign: ``python tests/fuzz_server.py --requests 10000``.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import TestServer, serving

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TEMPLATES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "abc", "max_tokens": 4, "temperature": 0},
        {"prompt": [[1, 2], [3]], "max_tokens": 3, "n": 2, "logprobs": 2, "echo": True, "stream": True},
        {"prompt": ["a", "b"], "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": 1.5}, "seed": 1, "top_k": 4},
        {"prompt": "a", "max_tokens": 8, "structured_outputs": {"regex": "[a-c]{2,5}"}},
        {"prompt": "a", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}, "min_tokens": 2},
        {"prompt": "a", "max_tokens": 5, "truncate_prompt_tokens": 3, "return_token_ids": True, "prompt_logprobs": 1},
    ],
    "/v1/chat/completions": [
        {"messages": CHAT, "max_tokens": 4},
        {"messages": CHAT, "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2, "n": 2, "stream": True},
        {"messages": CHAT, "max_tokens": 12, "response_format": {"type": "json_object", "schema": SCHEMA}},
        {"messages": CHAT, "max_tokens": 3, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": CHAT, "max_tokens": 3, "chat_template_kwargs": {"x": 1}, "add_generation_prompt": False},
    ],
    "/generate": [{"inputs": "a", "parameters": {"max_new_tokens": 3, "details": True, "stop": ["z"], "seed": 4}}],
    "/generate_stream": [{"inputs": "a", "parameters": {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5}}],
    "/tokenize": [{"prompt": "abc", "return_token_strs": True}, {"messages": CHAT}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 20, 255, 256, 257, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.0, -0.0,
    0.5, 1e-5, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"), "", "a", "\x00", "é水😀", "\ud800",
    "<|endoftext|>", "{{ 7*7 }}", "a" * 300, [], [0], [-1], [1.5], ["a"], [None], [[]], [[1]], {}, {"a": 1},
    {"type": "json_object"}, {"5": 1}, {"5": -100}, {"type": "object"}, {"regex": "(a|b)*c"}, {"json": {"$ref": "#"}},
    {"choice": ["a", "ab"]}, {"grammar": 'start: "a" start | "b"'}, "auto", "none", "text", [[[[[[]]]]]],
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "^(a+)+$"}}},
]  # fmt: skip
NAMES = [
    "n", "stop", "seed", "echo", "user", "model", "stream", "suffix", "top_p", "min_p", "top_k", "logprobs", "best_of",
    "max_tokens", "logit_bias", "tool_choice", "tools", "documents", "temperature", "ignore_eos", "top_logprobs",
    "response_format", "stop_token_ids", "prompt_logprobs", "structured_outputs", "repetition_penalty", "min_tokens",
    "presence_penalty", "frequency_penalty", "include_stop_str_in_output", "skip_special_tokens", "stream_options",
    "continue_final_message", "chat_template", "add_special_tokens", "typical_p", "details", "do_sample", "grammar",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in [(*path, key), *places(item, (*path, key))]]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in [(*path, i), *places(item, (*path, i))]]
    return []


def mutate(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """Changes a body in a few places."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        if rng.random() < 0.5:
            body[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
            continue
        options = places(body)
        if not options:
            continue
        *parents, last = rng.choice(options)
        target: Any = body
        for step in parents:
            target = target[step]
        if rng.random() < 0.2:
            del target[last]
        else:
            target[last] = copy.deepcopy(rng.choice(VALUES))
    return body


def message(seed: int) -> tuple[bytes, bool]:
    """A whole HTTP request, and whether it is broken: then no answer may come before it ends."""
    rng = random.Random(seed)
    path = rng.choice(list(TEMPLATES))
    data = json.dumps(mutate(rng, rng.choice(TEMPLATES[path]))).encode()
    if rng.random() < 0.15:  # broken JSON
        position = rng.randrange(len(data) + 1)
        data = (
            data[:position]
            + bytes(rng.choices(range(256), k=rng.randrange(1, 5)))
            + data[position + rng.randrange(3) :]
        )
    kind = rng.choice(["application/json"] * 9 + ["text/plain", "application/x-www-form-urlencoded", "\xff"])
    method = rng.choice(["POST"] * 12 + ["GET", "PUT", "BREW"])
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    whole = (head + f"Content-Length: {len(data)}\r\n\r\n").encode("latin-1") + data
    broken = rng.random() < 0.05
    if broken:
        position = rng.randrange(len(whole))
        whole = whole[:position] + bytes(rng.choices(range(256), k=3)) + whole[position + 1 :]
    return whole, broken


def send(server: TestServer, seed: int) -> str:
    """Sends one; gives the status, or why there was none."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        data, broken = message(seed)
        connection.sendall(data)
        if broken:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"
    if b'"server_error"' in answer:
        status = "500"
    return status


def campaign(server: TestServer, seeds: range) -> Counter[str]:
    """Sends many at a time, and reports how often each status came; failing seeds go to standard error."""
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda seed: send(server, seed), seeds))
    for seed, status in zip(seeds, statuses, strict=True):
        if status.startswith("5"):
            sys.stderr.write(f"seed {seed}: {status}: {message(seed)[0]!r:.2000}\n")
    return Counter(statuses)


def main() -> None:
    """A long campaign over a tiny model."""
    from reference.tiny_models import TINY_SPECS, write_tiny_model

    from llm_boost import Model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = write_tiny_model(Path(directory) / "tiny", TINY_SPECS["llama_mha"])
        with Model.from_pretrained(path, max_num_seqs=8) as model, serving(model, max_queue=64) as server:
            started = time.monotonic()
            first = arguments.seed
            statuses = campaign(server, range(first, first + arguments.requests))
            healthy = server.get("/health").status == 200
            server.wait_until_idle()
    print(f"{arguments.requests} requests in {time.monotonic() - started:.0f} s: {dict(statuses)}, healthy: {healthy}")
    sys.exit(any(status.startswith("5") for status in statuses) or not healthy)


if __name__ == "__main__":
    main()
