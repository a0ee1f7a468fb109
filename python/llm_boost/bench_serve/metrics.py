"""Numbers from what was recorded, under the names of vLLM's serving benchmark."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError

PERCENTILES = (50, 90, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of a request. Times are seconds of one clock.

    Attributes:
        start: When it was sent, before the connection was made.
        end: When its last token came, or the refusal, or the error.
        status: Of HTTP; 0 where none came, or not all of the answer.
        error: What went wrong; "left" where the client hung up on purpose.
        input_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        token_times: When each piece with text came; a piece may hold several tokens.
        text: The answer.
    """

    start: float
    end: float
    status: int
    error: str
    input_tokens: int
    output_tokens: int
    token_times: tuple[float, ...]
    text: str

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.token_times[0] - self.start

    @property
    def e2el(self) -> float:
        """Seconds to the last token."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; None for a single one."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def itls(self) -> list[float]:
        """Seconds between pieces."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_times)]


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """Reads service levels: the most milliseconds a good request may take.

    Raises:
        ConfigError: A word is not NAME:MILLISECONDS.

    Example:
        >>> parse_goodput(["ttft:500", "tpot:50"])
        {'ttft': 500.0, 'tpot': 50.0}
    """
    levels = {}
    for word in words:
        name, _, limit = word.partition(":")
        if name not in ("ttft", "tpot", "e2el"):
            raise ConfigError(f"--goodput: {unknown_name('latency', name, ('ttft', 'tpot', 'e2el'))}")
        try:
            levels[name] = float(limit)
        except ValueError:
            raise ConfigError(
                f"--goodput: '{word}' has no number after the colon, expected {name}:MILLISECONDS"
            ) from None
    return levels


def summarize(records: Sequence[RequestRecord], duration: float, goodput: Mapping[str, float]) -> dict[str, Any]:
    """Computes throughput, and mean, median, standard deviation and percentiles of each latency in milliseconds.

    Latencies are those of the requests that completed: time to first token (ttft), time per further token (tpot), time
    between pieces (itl), and all of it (e2el). A latency that no request has is 0, as in vLLM. `rejection` is the time
    of answers with an HTTP error, which vLLM does not report.

    Args:
        records: All requests.
        duration: Seconds from the first request to the last answer.
        goodput: Most milliseconds that a good request may take, by latency; empty to report none.
    """
    done = [record for record in records if not record.error]
    rejected = [record for record in records if record.status not in (0, 200)]
    total_input = sum(record.input_tokens for record in done)
    total_output = sum(record.output_tokens for record in done)
    seconds = {
        "ttft": [record.ttft for record in done],
        "tpot": [record.tpot for record in done if record.tpot is not None],
        "itl": [itl for record in done for itl in record.itls],
        "e2el": [record.e2el for record in done],
        "rejection": [record.e2el for record in rejected],
    }
    good = [record for record in done if all((getattr(record, n) or 0) * 1e3 <= most for n, most in goodput.items())]
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": len(done) / duration,
        "request_goodput": len(good) / duration if goodput else None,
        "output_throughput": total_output / duration,
        "total_token_throughput": (total_input + total_output) / duration,
        "max_output_tokens_per_s": max(tokens_per_second(done), default=0.0),
        "max_concurrent_requests": max((running for _, running in concurrency(records)), default=0),
        "statuses": {str(status): count for status, count in sorted(Counter(r.status for r in records).items())},
    }
    for name, values in seconds.items():
        result |= _statistics(name, values)
    return result


def _statistics(name: str, seconds: Sequence[float]) -> dict[str, float]:
    values = np.asarray(seconds or [0.0]) * 1e3
    result = {f"mean_{name}_ms": values.mean(), f"median_{name}_ms": np.median(values), f"std_{name}_ms": values.std()}
    result |= {f"p{rank}_{name}_ms": np.percentile(values, rank) for rank in PERCENTILES}
    return {key: float(value) for key, value in result.items()}


def details(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The lists that vLLM's ``--save-detailed`` adds, one entry a request."""
    return {
        "input_lens": [record.input_tokens for record in records],
        "output_lens": [record.output_tokens for record in records],
        "start_times": [record.start for record in records],
        "ttfts": [record.ttft if record.token_times else 0.0 for record in records],
        "itls": [record.itls for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def tokens_per_second(records: Sequence[RequestRecord]) -> list[float]:
    """Tokens that came in each second since the first request."""
    if not records:
        return []
    begin = min(record.start for record in records)
    counts = np.zeros(int(max(record.end for record in records) - begin) + 1)
    for record in records:
        seconds = (np.asarray(record.token_times) - begin).astype(int)
        np.add.at(counts, seconds, record.output_tokens / max(1, len(record.token_times)))
    return [float(count) for count in counts]


def concurrency(records: Sequence[RequestRecord]) -> list[tuple[float, int]]:
    """How many requests run, from each moment at which that changes."""
    changes = sorted([(record.end, -1) for record in records] + [(record.start, 1) for record in records])
    running = np.cumsum([change for _, change in changes], dtype=int).tolist()
    return list(zip((moment for moment, _ in changes), running, strict=True))
