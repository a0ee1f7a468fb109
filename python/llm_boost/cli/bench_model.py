"""Measures a loaded model: what `llm-boost bench MODEL` reports."""

from __future__ import annotations

import hashlib
import json
import math
import random
import resource
import shutil
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_boost import _core
from llm_boost.model import Model
from llm_boost.sampling_params import SamplingParams

_POLL_MS = 50
_HASHED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine can do at best, measured with the threads that the model uses.

    Attributes:
        bytes_per_second: Read bandwidth.
        flops_per_second: Of the multiplication that the kernels use.
    """

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Some requests that start together; `generate` of 1 measures the prompt alone."""

    prompt: int
    generate: int
    batch: int

    @property
    def kind(self) -> str:
        """What of it is measured."""
        return "prefill" if self.generate == 1 else "decode"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One workload's result.

    Attributes:
        workload: What was computed.
        tokens_per_second: Of the prompt for prefill, of the answers for decode; one value a repetition.
        gb_per_second: Bytes that must be read, in the median repetition.
        gflop_per_second: Of matrix products and attention, in the median repetition.
        fraction_of_limit: Of the limit that binds; None where the limits are not known.
        limited_by: "bandwidth" or "arithmetic"; None where the limits are not known.
    """

    workload: Workload
    tokens_per_second: list[float]
    gb_per_second: float
    gflop_per_second: float
    fraction_of_limit: float | None
    limited_by: str | None


WORKLOADS = (
    Workload(128, 128, 1),
    Workload(512, 1, 1),
    Workload(2048, 1, 1),
    Workload(128, 32, 8),
    Workload(128, 32, 32),
)


def bench_program() -> str | None:
    """Returns the path of `llm_boost_bench`; None where it is not installed."""
    places = [Path(sysconfig.get_path("scripts")), Path(_core.__file__).parent / "bin"]
    return shutil.which("llm_boost_bench", path=":".join(map(str, places)))


def find_limits(num_threads: int) -> Limits | None:
    """Asks `llm_boost_bench` what the machine can do; None where that program is not installed."""
    program = bench_program()
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603  # a program of this package, with numbers for arguments
        [program, "limits", "--threads", str(num_threads), "--json", "-"], capture_output=True, text=True, check=True
    )
    limits = json.loads(done.stdout)["limits"]
    return Limits(limits["bytes_per_second"]["best"], limits["flops_per_second"]["best"])


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def logits_hash(model: Model) -> str:
    """A digest of the logits of one fixed prompt: a speed-up that changes the answer shows."""
    info = model.info()
    num_tokens = min(_HASHED_TOKENS, info.max_model_len, info.max_num_batched_tokens)
    used = math.ceil(num_tokens / info.block_size)
    width = math.ceil(info.max_model_len / info.block_size)
    table = np.full((1, width), -1, np.int32)
    table[0, :used] = np.arange(used)
    logits = model.forward(
        token_ids=np.arange(num_tokens) % model.config.vocab_size,
        positions=np.arange(num_tokens),
        slots=np.arange(num_tokens),
        seq_begin=[0, num_tokens],
        context_len=[num_tokens],
        block_table=table,
        logit_rows=[num_tokens - 1],
    )
    return hashlib.sha256(logits.tobytes()).hexdigest()[:16]


def measure(model: Model, workload: Workload, repeat: int, limits: Limits | None) -> Measurement:
    """Computes a workload once unmeasured and then `repeat` times.

    Raises:
        RequestError: The model's context is too short for it.
    """
    rates = []
    for repetition in range(repeat + 1):
        prefill_seconds, decode_seconds, decode_tokens = time_requests(
            model, _prompts(model, workload, seed=repetition), workload.generate
        )
        if repetition == 0:
            continue
        if workload.kind == "prefill":
            rates.append(workload.batch * workload.prompt / prefill_seconds)
        else:
            rates.append(decode_tokens / decode_seconds)
    num_bytes, flops = _floor(model, workload)
    tokens = workload.batch * (workload.prompt if workload.kind == "prefill" else 1)
    seconds = tokens / statistics.median(rates)
    fraction, limited_by = None, None
    if limits is not None:
        by = {"bandwidth": num_bytes / limits.bytes_per_second, "arithmetic": flops / limits.flops_per_second}
        limited_by = max(by, key=lambda name: by[name])
        fraction = by[limited_by] / seconds
    return Measurement(workload, rates, num_bytes / seconds / 1e9, flops / seconds / 1e9, fraction, limited_by)


def time_requests(model: Model, prompts: Sequence[Sequence[int]], num_tokens: int) -> tuple[float, float, int]:
    """Computes some prompts at once, greedily and past end-of-text tokens.

    Returns:
        Seconds until every request has its first token, seconds from there on, and tokens in that time; where all
        tokens came at once, the whole time, twice, and all of them.

    Raises:
        RequestError: A prompt cannot be served.
    """
    core = model._core
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=num_tokens).to_core(max_tokens=num_tokens)
    for prompt in prompts:
        core.check(list(prompt), params)
    queue = _core.OutputQueue()
    unfinished, late_tokens, first = len(prompts), 0, 0.0
    started = time.perf_counter()
    waiting = {core.submit(list(prompt), params, queue) for prompt in prompts}
    while unfinished:
        events = queue.pop(_POLL_MS)
        now = time.perf_counter()
        if first:
            late_tokens += len(events)
        waiting.difference_update(event.request for event in events)
        unfinished -= sum(event.finish_reason != "" for event in events)
        if not waiting and not first:
            first = now
    ended = time.perf_counter()
    if late_tokens == 0:  # all came at once: too fast to tell the prompts from the rest
        return ended - started, ended - started, len(prompts) * num_tokens
    return first - started, ended - first, late_tokens


def _prompts(model: Model, workload: Workload, seed: int) -> list[list[int]]:
    """Random prompts; those of another seed share no prefix with these."""
    source = random.Random(seed)  # noqa: S311  # not for secrets
    vocab = model.config.vocab_size
    return [[source.randrange(vocab) for _ in range(workload.prompt)] for _ in range(workload.batch)]


def _floor(model: Model, workload: Workload) -> tuple[float, float]:
    """Bytes that must be read and flops: of the whole prompt, or of one decode step in the middle of the answer."""
    config = model.config
    element = 4 if model.info().activation_dtype == "float32" else 2
    shapes = [shape for _, shape in _core.expected_weights(config.to_core(max_positions=1))]
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    embedding = config.vocab_size * config.hidden_size  # only rows of it are read, except as a tied lm_head
    in_layers = matrices - (1 if config.tie_word_embeddings else 2) * embedding
    weight_bytes = model.info().weight_bytes * (in_layers + embedding) / matrices
    row = config.num_layers * config.head_dim
    cache_bytes = 2 * row * config.num_kv_heads * element
    attention_flops = 4 * row * config.num_heads
    head_flops = 2 * embedding * workload.batch
    if workload.kind == "prefill":
        pairs = workload.prompt * (workload.prompt + 1) / 2
        flops = workload.batch * (2 * in_layers * workload.prompt + attention_flops * pairs) + head_flops
        return weight_bytes + workload.batch * workload.prompt * cache_bytes, flops
    context = workload.prompt + workload.generate / 2
    flops = workload.batch * (2 * in_layers + attention_flops * context) + head_flops
    return weight_bytes + workload.batch * context * cache_bytes, flops


def fitting(workloads: Sequence[Workload], model: Model) -> list[Workload]:
    """Those that the model's context has room for."""
    return [w for w in workloads if w.prompt + w.generate <= model.info().max_model_len]
