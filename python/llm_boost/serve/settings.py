"""What an operator may choose about a server."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llm_boost.errors import ConfigError

_METRICS_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_POSITIVE = (
    "retry_after_seconds", "max_body_bytes", "request_seconds", "max_prompts", "max_stop_strings", "max_stop_chars",
    "ping_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Names, key and limits of a server; the one home of their defaults.

    Attributes:
        served_model_names: What clients may call the model; the first one is what answers call it.
        api_key: Clients must send it as ``Authorization: Bearer KEY`` for everything but ``/health``; None for no key.
        max_queue: Samples that may wait besides those that are computed; beyond, requests are refused with 429.
        retry_after_seconds: What refused clients are told to wait.
        max_body_bytes: Largest request body.
        request_seconds: How long a request may take to arrive, from the first byte of a connection or request on.
        max_prompts: Most prompts of one request.
        max_stop_strings: Most stop strings of one request, and most tokens that end one.
        max_stop_chars: Length of a stop string.
        max_logprobs: Most alternatives a token that a request may ask for.
        drain_seconds: How long answers that are under way may go on once the server is told to end.
        ping_seconds: An event stream without news says so after this long, so that no proxy gives up.
        allowed_hosts: Names that clients may call this server by, in the Host header; none for any. Without a key, this
            keeps out pages whose name has been made to point at this machine.
        allowed_origins: Web origins whose pages may call this server (CORS); none by default.
        metrics_prefix: Begins the names of metrics; "vllm" makes dashboards for vLLM work as they are.
        log_prompts: Write prompts to the log.

    Raises:
        ConfigError: A value cannot be used.
    """

    served_model_names: tuple[str, ...]
    api_key: str | None = None
    max_queue: int = 128
    retry_after_seconds: int = 1
    max_body_bytes: int = 4 << 20
    request_seconds: float = 60.0
    max_prompts: int = 256
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
    max_logprobs: int = 20
    drain_seconds: float = 30.0
    ping_seconds: float = 15.0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    metrics_prefix: str = "vllm"
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise ConfigError(f"served_model_names is {self.served_model_names!r}, expected at least one name")
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key and key == key.strip()):
            raise ConfigError("api_key is empty, or has characters that no HTTP header can carry")
        if not _METRICS_PREFIX.fullmatch(self.metrics_prefix):
            raise ConfigError(f"metrics_prefix is {self.metrics_prefix!r}, expected letters, digits and underscores")
        for name in ("max_queue", "drain_seconds", "max_logprobs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
