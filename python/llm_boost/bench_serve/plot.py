"""Draws a run: how latencies are distributed, and how throughput and load went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_boost.bench_serve.metrics import RequestRecord, concurrency, tokens_per_second
from llm_boost.errors import ConfigError


def plot(path: Path, result: Mapping[str, Any], records: Sequence[RequestRecord]) -> None:
    """Writes an image.

    Raises:
        ConfigError: matplotlib is missing, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('--plot needs matplotlib: pip install "llm_boost[plot]"') from error
    done = [record for record in records if not record.error]
    begin = min(record.start for record in records)
    figure = Figure(figsize=(10, 7), layout="constrained")
    latency, speed, running = figure.subplots(3, 1, height_ratios=[2, 1, 1])
    seconds = {
        "time to first token": [record.ttft for record in done],
        "time per token": [record.tpot for record in done if record.tpot is not None],
        "inter-token latency": [itl for record in done for itl in record.itls],
        "end to end": [record.e2el for record in done],
    }
    for name, values in seconds.items():
        if values:
            latency.plot(np.sort(values) * 1e3, np.linspace(0, 1, len(values)), label=name)
    latency.set(xscale="log", xlabel="milliseconds", ylabel="share of requests or tokens", ylim=(0, 1.02))
    for share in (0.5, 0.9, 0.99):
        latency.axhline(share, color="grey", linewidth=0.5)
    latency.legend(loc="upper left")
    latency.set_title(
        f"{result['model_id']}: {result['completed']} of {result['num_prompts']} requests, "
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.1f} tokens/s"
    )
    speed.stairs(tokens_per_second(done), fill=True)
    speed.set(ylabel="tokens/s")
    moments, counts = zip(*concurrency(records), strict=True)
    running.step([moment - begin for moment in moments], counts, where="post")
    running.set(xlabel="seconds", ylabel="requests under way")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written: {error}") from error
