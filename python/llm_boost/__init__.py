"""llm_boost: LLM inference on Ascend NPUs and CPUs.

Example:
    >>> from llm_boost import Model, SamplingParams
    >>> model = Model.from_pretrained("smollm2-135m-instruct")  # doctest: +SKIP
    >>> print(model.generate("The sea is", SamplingParams(temperature=0))[0].outputs[0].text)  # doctest: +SKIP
"""

from __future__ import annotations

from llm_boost._core import __version__
from llm_boost.errors import (
    BackendError,
    ChatTemplateError,
    CheckpointError,
    ConfigError,
    DownloadError,
    InternalError,
    LlmBoostError,
    RequestError,
    TokenizerError,
)
from llm_boost.model import Model, ModelInfo
from llm_boost.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, TextPiece
from llm_boost.run_config import RunConfig, load_config
from llm_boost.sampling_params import SamplingParams

__all__ = [
    "BackendError",
    "ChatTemplateError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "DownloadError",
    "InternalError",
    "LlmBoostError",
    "Logprob",
    "Model",
    "ModelInfo",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "RunConfig",
    "SamplingParams",
    "TextPiece",
    "TokenizerError",
    "__version__",
    "load_config",
]
