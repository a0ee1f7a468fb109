"""Prometheus metrics, under the names that dashboards for vLLM expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_boost import ModelInfo
from llm_boost._request import RunningRequest
from llm_boost.outputs import TextPiece

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_LONG = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_GAPS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Time from arrival to the first token.", _SECONDS),
    "inter_token_latency_seconds": ("Time between two tokens of a sample.", _GAPS),
    "request_time_per_output_token_seconds": ("Mean time per token after the first, of a request.", _GAPS),
    "e2e_request_latency_seconds": ("Time from arrival to the last token.", _LONG),
    "request_queue_time_seconds": ("Time from arrival to the first step.", _LONG),
    "request_prefill_time_seconds": ("Time from the first step to the first token.", _LONG),
    "request_decode_time_seconds": ("Time from the first token to the last.", _LONG),
    "request_prompt_tokens": ("Tokens of a request's prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of a request's samples.", _TOKENS),
}


class Metrics:
    """What a server counts. Observations come from one thread at a time, scrapes from any."""

    def __init__(self, prefix: str, model_name: str, info: ModelInfo) -> None:
        """Starts at zero."""
        self._registry = CollectorRegistry()
        self._prefix = prefix
        self._model_name = model_name
        self._info = info
        self._stats: Mapping[str, int] = {}
        self._histograms: dict[str, Histogram] = {
            name: Histogram(f"{prefix}:{name}", text, ["model_name"], buckets=buckets, registry=self._registry).labels(
                model_name
            )
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._success = Counter(
            f"{prefix}:request_success", "Requests that ended.", ["model_name", "finished_reason"],
            registry=self._registry,
        )  # fmt: skip
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(model_name, reason)
        self._rejections = Counter(
            f"{prefix}:admission_rejections", "Requests refused because the queue was full.", ["model_name"],
            registry=self._registry,
        ).labels(model_name)  # fmt: skip
        self._last_token: dict[tuple[RunningRequest, int], float] = {}
        self._registry.register(_EngineCollector(self))

    def observe_piece(self, request: RunningRequest, piece: TextPiece, now: float) -> None:
        """Counts new tokens of a sample."""
        if not piece.token_ids:
            return
        key = (request, piece.index)
        before = self._last_token.get(key)
        self._last_token[key] = now
        if before is not None:
            self._histograms["inter_token_latency_seconds"].observe(now - before)

    def observe_end(self, request: RunningRequest) -> None:
        """Counts a request that ended, was cancelled, or failed."""
        for index in range(request.params.n):
            self._last_token.pop((request, index), None)
        tokens = request.num_output_tokens
        output = request.result("")
        times = output.metrics
        for sample in output.outputs:
            self._success.labels(self._model_name, sample.finish_reason or "abort").inc()
        if not request.finished:
            return
        decode = times.total_time - times.time_to_first_token
        observed = {
            "time_to_first_token_seconds": times.time_to_first_token,
            "e2e_request_latency_seconds": times.total_time,
            "request_queue_time_seconds": request.queue_seconds,
            "request_prefill_time_seconds": max(times.time_to_first_token - request.queue_seconds, 0.0),
            "request_decode_time_seconds": decode,
            "request_prompt_tokens": len(request.prompt_token_ids),
            "request_generation_tokens": tokens,
        }
        per_sample = tokens / request.params.n
        if per_sample > 1:
            observed["request_time_per_output_token_seconds"] = decode / (per_sample - 1)
        for name, value in observed.items():
            self._histograms[name].observe(value)

    def observe_rejection(self) -> None:
        """Counts a request that was refused because the queue was full."""
        self._rejections.inc()

    def text(self, stats: Mapping[str, int]) -> bytes:
        """The page that Prometheus reads; `stats` are the engine's."""
        self._stats = stats
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the engine counts itself."""
        stats, labels = self._stats, {"model_name": self._model_name}
        if not stats:  # before the first scrape: only names are wanted
            return
        used = 1 - stats["num_free_blocks"] / stats["num_blocks"]
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Samples being computed.", stats["num_running"]),
            "num_requests_waiting": ("Samples waiting to be computed.", stats["num_waiting"]),
            "kv_cache_usage_perc": ("Part of the KV cache that is in use; 1 is all of it.", used),
        }
        counters: dict[str, tuple[str, float]] = {
            "prefix_cache_queries": ("Tokens looked up in the prefix cache.", stats["prefix_queries"]),
            "prefix_cache_hits": ("Tokens found in the prefix cache.", stats["prefix_hits"]),
            "num_preemptions": ("Samples that had to give up their cache.", stats["num_preemptions"]),
            "prompt_tokens": ("Prompt tokens computed.", stats["prompt_tokens"]),
            "generation_tokens": ("Tokens generated.", stats["output_tokens"]),
            "engine_steps": ("Steps computed.", stats["num_steps"]),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=list(labels))
            gauge.add_metric(list(labels.values()), value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=list(labels))
            counter.add_metric(list(labels.values()), value)
            yield counter
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        facts: dict[str, Any] = {
            "model_name": self._model_name,
            "block_size": self._info.block_size,
            "num_gpu_blocks": self._info.num_blocks,  # the name that dashboards know
            "cache_dtype": self._info.activation_dtype,
            "cache_bytes": self._info.cache_bytes,
        }
        gauge = GaugeMetricFamily(f"{self._prefix}:cache_config_info", "The KV cache.", labels=list(facts))
        gauge.add_metric([str(value) for value in facts.values()], 1)
        return gauge


class _EngineCollector(Collector):
    """Reads the engine's own counters when scraped."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()
