"""The exceptions that llm_boost raises.

Each message says where the problem is, what was expected, what was found and what to do about it. All of them derive
from `LlmBoostError`; the ones that report bad input are also `ValueError`, the others `RuntimeError`, so that code
which knows nothing of llm_boost can still catch them sensibly. The C++ core throws the same types.
"""

from __future__ import annotations


class LlmBoostError(Exception):
    """Base class of every error that llm_boost raises on purpose."""


class ConfigError(LlmBoostError, ValueError):
    """A model config, run config, option or environment variable is wrong."""


class CheckpointError(LlmBoostError, ValueError):
    """A weight file is damaged, unsafe, or does not hold what the model needs."""


class TokenizerError(LlmBoostError, ValueError):
    """Tokenizer files are missing or wrong, or text cannot be tokenized."""


class ChatTemplateError(LlmBoostError, ValueError):
    """A chat template is missing, raised an error, or ran past its limits."""


class RequestError(LlmBoostError, ValueError):
    """A prompt or a sampling parameter cannot be served."""


class DownloadError(LlmBoostError, RuntimeError):
    """A model could not be fetched, or what arrived is not what was expected."""


class BackendError(LlmBoostError, RuntimeError):
    """A backend is unavailable, or failed while it ran."""


class InternalError(LlmBoostError, RuntimeError):
    """An invariant of llm_boost is broken: a bug, please report it."""
