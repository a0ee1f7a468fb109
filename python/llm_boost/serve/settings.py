"""What an operator may choose about a server."""

from __future__ import annotations

from dataclasses import dataclass

from llm_boost.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Names, key and limits of a server; the one home of their defaults.

    Attributes:
        served_model_names: What clients may call the model; the first one is what answers call it.
        api_key: Clients must send it as ``Authorization: Bearer KEY`` for everything but ``/health``; None for no key.
        max_queue: Samples that may wait besides those that are computed; beyond, requests are refused with 429.
        retry_after_seconds: What refused clients are told to wait.
        max_body_bytes: Largest request body.
        max_prompts: Most prompts of one request.
        max_stop_strings: Most stop strings of one request, and most tokens that end one.
        max_logprobs: Most alternatives a token that a request may ask for.
        drain_seconds: How long answers that are under way may go on once the server is told to end.
        ping_seconds: An event stream without news says so after this long, so that no proxy gives up.
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
    max_prompts: int = 256
    max_stop_strings: int = 16
    max_logprobs: int = 20
    drain_seconds: float = 30.0
    ping_seconds: float = 15.0
    allowed_origins: tuple[str, ...] = ()
    metrics_prefix: str = "vllm"
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise ConfigError(f"served_model_names is {self.served_model_names!r}, expected at least one name")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ConfigError("api_key is empty or has characters that no HTTP header can carry")
        for name in ("max_queue", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("max_body_bytes", "max_prompts", "max_stop_strings", "retry_after_seconds", "ping_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
