"""``llm-boost bench serve``: load an OpenAI-compatible server and measure it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llm_boost.bench_serve.client import Server, fetch_json, send
from llm_boost.bench_serve.load import run_load
from llm_boost.bench_serve.metrics import LATENCIES, PERCENTILES, RequestRecord, details, parse_goodput, summarize
from llm_boost.bench_serve.workload import LoadRequest, RandomPrompts, arrival_times, file_requests, random_requests
from llm_boost.errors import BackendError, ConfigError

SUMMARY = "load an OpenAI-compatible server and measure latencies and throughput"

_PROMPTS = RandomPrompts()  # for its defaults
_TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per further token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
    "rejection": "Time to a refusal",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments; those that vLLM's benchmark has too are named as there."""
    add = parser.add_argument_group("server").add_argument
    add("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="default: %(default)s")
    add("--endpoint", choices=["/v1/completions", "/v1/chat/completions"], default="/v1/completions")
    add("--model", help="default: the first that the server lists")
    add("--api-key", help="better in the environment variable LLM_BOOST_API_KEY, which ps hides")
    add = parser.add_argument_group("load").add_argument
    add("--num-prompts", type=int, default=200, metavar="N", help="requests (default: %(default)s)")
    add("--num-warmups", type=int, default=1, metavar="N", help="requests before, not measured (default: %(default)s)")
    add("--request-rate", type=float, default=float("inf"), metavar="R", help="a second (default: all at once)")
    add("--burstiness", type=float, default=1.0, metavar="B", help="1: Poisson; below: bursts; above: more even")
    add("--max-concurrency", type=int, metavar="N", help="most requests at once")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds a request may take (default: %(default)s)")
    add(
        "--leave-within", type=float, metavar="S", help="each client hangs up at a random moment of its first S seconds"
    )
    add("--seed", type=int, default=0, help="of prompts, lengths and arrivals (default: %(default)s)")
    add = parser.add_argument_group("prompts").add_argument
    add("--dataset-path", type=Path, metavar="JSONL", help="lines with prompt or messages, and maybe max_tokens")
    add("--random-input-len", type=int, default=_PROMPTS.input_len, metavar="N", help="tokens (default: %(default)s)")
    add("--random-output-len", type=int, default=_PROMPTS.output_len, metavar="N", help="tokens (default: %(default)s)")
    add(
        "--random-range-ratio", type=float, default=_PROMPTS.range_ratio, metavar="R", help="lengths vary by this share"
    )
    add("--random-prefix-len", type=int, default=_PROMPTS.prefix_len, metavar="N", help="tokens that prompts share")
    add("--num-prefixes", type=int, default=_PROMPTS.num_prefixes, metavar="N", help="different shared beginnings")
    add(
        "--token-ids",
        type=int,
        nargs=2,
        default=_PROMPTS.token_ids,
        metavar="ID",
        help="range of ids in random prompts",
    )
    add("--ignore-eos", action="store_true", help="answers have all the tokens asked for")
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add("--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields for all requests")
    add = parser.add_argument_group("results").add_argument
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help="service levels of good requests: ttft, tpot, e2el")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    add("--save-detailed", action="store_true", help="with the times and texts of each request")
    add("--plot", type=Path, metavar="FILE", help="draw the result there (pip install 'llm_boost[plot]')")
    add("--label", help="a name for this run in the result")


def main(arguments: argparse.Namespace) -> int:
    """Loads the server, prints a table, writes the result."""
    for name, least in (("num_prompts", 1), ("num_warmups", 0), ("max_concurrency", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
    if not isinstance(arguments.extra_body, dict):
        raise ConfigError(f"--extra-body is {arguments.extra_body!r}, expected a JSON object")
    if not arguments.timeout > 0:
        raise ConfigError(f"--timeout is {arguments.timeout}, expected more than 0")
    for path in filter(None, (arguments.json, arguments.plot)):  # before the time for a measurement is spent
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"{path}: cannot be written: there is no such folder, or it is one itself")
    goodput = parse_goodput(arguments.goodput)
    model, records, duration = asyncio.run(_run(arguments))
    result = _description(arguments, model) | summarize(records, duration, goodput)
    print(_table(result))
    for error, count in Counter(record.error for record in records if record.error).most_common(5):
        print(f"{count} x {error}")
    if arguments.json:
        extra = details(records) if arguments.save_detailed else {}
        _write(arguments.json, json.dumps(result | extra, indent=1) + "\n")
    if arguments.plot:
        from llm_boost.bench_serve.plot import plot

        plot(arguments.plot, result, records)
    if not result["completed"] and arguments.leave_within is None:
        raise BackendError(f"none of {len(records)} requests completed; the first: {records[0].error}")
    return 0


async def _run(arguments: argparse.Namespace) -> tuple[str, list[RequestRecord], float]:
    server = Server(arguments.base_url, arguments.api_key or os.environ.get("LLM_BOOST_API_KEY"))
    model = arguments.model or await _first_model(server)
    rng = np.random.default_rng(arguments.seed)
    requests = _requests(arguments, model, rng)
    arrivals = arrival_times(arguments.num_prompts, arguments.request_rate, arguments.burstiness, rng)
    post = partial(server.request, "POST", arguments.endpoint)
    for request in requests[arguments.num_prompts :]:
        record = await send(post, request, arguments.timeout)
        if record.error:
            raise BackendError(f"{arguments.base_url}{arguments.endpoint}: the first request failed: {record.error}")

    def measured(request: LoadRequest) -> Any:
        if arguments.leave_within is None:
            return send(post, request, arguments.timeout)
        return send(post, request, float(rng.uniform(0, arguments.leave_within)), leaves=True)

    with closing(tqdm(total=arguments.num_prompts, unit="request", leave=False, disable=None)) as progress:
        requests = requests[: arguments.num_prompts]
        records, duration = await run_load(
            measured, requests, arrivals, arguments.max_concurrency, lambda _: progress.update()
        )
    return model, records, duration


async def _first_model(server: Server) -> str:
    models = await fetch_json(server, "/v1/models")
    try:
        return str(models["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise BackendError(f"{server.base_url}/v1/models lists no model; name one with --model") from error


def _requests(arguments: argparse.Namespace, model: str, rng: np.random.Generator) -> Sequence[LoadRequest]:
    """The requests to measure, then those to warm up with."""
    count = arguments.num_prompts + arguments.num_warmups
    chat = arguments.endpoint == "/v1/chat/completions"
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"temperature": arguments.temperature} | ({"ignore_eos": True} if arguments.ignore_eos else {})
    body |= arguments.extra_body
    if arguments.dataset_path:
        return file_requests(arguments.dataset_path, count, body, arguments.random_output_len, chat=chat)
    spec = RandomPrompts(
        input_len=arguments.random_input_len,
        output_len=arguments.random_output_len,
        range_ratio=arguments.random_range_ratio,
        prefix_len=arguments.random_prefix_len,
        num_prefixes=arguments.num_prefixes,
        token_ids=tuple(arguments.token_ids),
    )
    return random_requests(spec, count, body, rng, chat=chat)


def _description(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    rate = arguments.request_rate
    return {
        "date": datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat" if "chat" in arguments.endpoint else "openai",
        "backend": "openai-chat" if "chat" in arguments.endpoint else "openai",
        "label": arguments.label,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": arguments.num_prompts,
        "request_rate": rate if np.isfinite(rate) else "inf",
        "burstiness": arguments.burstiness,
        "max_concurrency": arguments.max_concurrency,
    }


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['completed']} completed, {result['failed']} failed in {result['duration']:.2f} s, "
        f"at most {result['max_concurrent_requests']} at once",
        f"{result['total_input_tokens']} tokens in, {result['total_output_tokens']} out",
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.2f} tokens/s out "
        f"(peak {result['max_output_tokens_per_s']:.0f}), {result['total_token_throughput']:.2f} in all",
    ]
    if result["request_goodput"] is not None:
        lines.append(f"{result['request_goodput']:.2f} good requests/s")
    columns = ["mean", *(f"p{rank}" for rank in PERCENTILES)]
    lines.append(f"{'milliseconds':24}" + "".join(f"{column:>12}" for column in columns))
    lines += [
        f"{_TITLES[name]:24}" + "".join(f"{result[f'{column}_{name}_ms']:12.2f}" for column in columns)
        for name in (*LATENCIES, "rejection")
        if result[f"mean_{name}_ms"]
    ]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
