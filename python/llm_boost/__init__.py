"""llm_boost: LLM inference on Ascend NPUs and CPUs.

Example:
    >>> from llm_boost import Model, SamplingParams
    >>> model = Model.from_pretrained("smollm2-135m-instruct")  # doctest: +SKIP
    >>> print(model.generate("The sea is", SamplingParams(temperature=0))[0].outputs[0].text)  # doctest: +SKIP
"""

from __future__ import annotations

try:
    from llm_boost._core import __version__
except ModuleNotFoundError:
    raise
except ImportError as error:
    raise ImportError(
        f"the core of llm_boost cannot be loaded: {error}; where it was built for Ascend devices, it needs the "
        "libraries of CANN and ATB: source /usr/local/Ascend/ascend-toolkit/set_env.sh and "
        "/usr/local/Ascend/nnal/atb/set_env.sh, and in a container pass the driver into it",
        name=error.name,
        path=error.path,
    ) from error

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
from llm_boost.structured_outputs import StructuredOutputsParams

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
    "StructuredOutputsParams",
    "TextPiece",
    "TokenizerError",
    "__version__",
    "load_config",
]
