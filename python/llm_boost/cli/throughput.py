"""Throughput of a run config's model on random prompts, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_boost.errors import ConfigError
from llm_boost.model import Model
from llm_boost.run_config import RunConfig
from llm_boost.sampling_params import SamplingParams

# As the original measured: so many prompts at once, of so many tokens, each continued to twice its length.
_BATCH_SIZES = (1, 4)
_LENGTHS = (256, 512, 1024, 2048)
_MAX_TOKEN = 1000  # prompts are random tokens from 1 to this, less one


@dataclass(frozen=True, slots=True)
class _Row:
    """One measurement."""

    batch: int
    length: int
    new_tokens: int  # of the whole batch
    prompt_seconds: float  # until all prompts have their first token
    seconds: float

    def cells(self) -> tuple[str, ...]:
        prompt_speed = self.batch * self.length / self.prompt_seconds
        decode_seconds = self.seconds - self.prompt_seconds
        later_tokens = self.new_tokens - self.batch
        decode_speed = later_tokens / (decode_seconds if decode_seconds > 0 else self.seconds)
        speeds = (f"{speed:.1f}" for speed in (prompt_speed, decode_speed, self.new_tokens / self.seconds))
        return (str(self.batch), str(self.length), str(self.new_tokens), *speeds, f"{self.seconds:.3f}")


_HEADER = ("batch", "prompt", "new", "prefill tok/s", "decode tok/s", "new tok/s", "seconds")


def measure_throughput(run: RunConfig) -> str:
    """Measures and returns the table.

    The batch sizes are 1 and 4, and that of the run config; the lengths are those of the original that fit twice into
    the context, or half of the context where none does. End-of-text tokens do not end an output.

    Raises:
        ConfigError: The model cannot be loaded, or its context is shorter than two tokens.
    """
    batches = sorted({*_BATCH_SIZES, run.model.model_config.batch_size or 1})
    with Model.from_pretrained(run, max_num_seqs=max(batches)) as model:
        context = model.info().max_model_len
        lengths = [length for length in _LENGTHS if 2 * length <= context] or [context // 2]
        if lengths[0] == 0:
            raise ConfigError(f"the context has {context} tokens, expected at least 2 to measure with")
        _measure(model, batches[0], lengths[0])  # warms up
        rows = [_measure(model, batch, length) for batch in batches for length in lengths]
        return f"{model.info().backend}\n{_table([_HEADER, *(row.cells() for row in rows)])}"


def _measure(model: Model, batch: int, length: int) -> _Row:
    high = min(_MAX_TOKEN, model.config.vocab_size)
    prompts = np.random.default_rng().integers(1, high, (batch, length)).tolist()
    defaults = model.config.generation_defaults
    params = SamplingParams(
        max_tokens=length,
        ignore_eos=True,
        temperature=defaults.get("temperature", 1.0) if defaults.get("do_sample") else 0.0,
        top_k=defaults.get("top_k", 0),
        top_p=defaults.get("top_p", 1.0),
    )
    started = time.perf_counter()
    outputs = model.generate(prompts, params)
    seconds = time.perf_counter() - started
    new_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return _Row(batch, length, new_tokens, max(output.metrics.time_to_first_token for output in outputs), seconds)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
