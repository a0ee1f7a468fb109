"""The C++ core of llm_boost. Use the llm_boost package instead."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str

class ModelConfig:
    """Shape and numeric settings of a model; see csrc/model/config.h."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    tie_word_embeddings: bool
    rope_inv_freq: list[float]
    rope_position_scale: float
    rope_amplitude: float
    rope_dtype: str
    rope_cos: npt.NDArray[np.float32]
    rope_sin: npt.NDArray[np.float32]

    def __init__(self) -> None: ...

class WeightTable:
    """Where each canonical weight of a model is stored."""

    def __init__(self) -> None: ...
    def add(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        segments: Sequence[tuple[str, int, int] | npt.NDArray[np.uint8]],
    ) -> None:
        """Adds a row-major tensor: its segments in order, (path, offset, bytes) or memory. Raises CheckpointError."""

class SamplingParams:
    """See llm_boost.SamplingParams."""

    n: int
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    ignore_eos: bool
    stop_token_ids: list[int]
    logit_bias: list[tuple[int, float]]
    logprobs: int
    prompt_logprobs: int

    def __init__(self) -> None: ...

class TokenEvent:
    """One new token, a token of the prompt with its logprobs, or the end of a sample."""

    @property
    def request(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def prompt_position(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def stop_token(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def logprobs(self) -> list[tuple[int, float, int]]: ...

class OutputQueue:
    """Where the events of some requests go."""

    def __init__(self) -> None: ...
    def pop(self, timeout_ms: int) -> list[TokenEvent]:
        """Waits for events; gives all there are, possibly none after the timeout."""

class EngineOptions:
    """What a user may choose about a loaded model, with its defaults; see csrc/engine/load.h."""

    backend: str
    dtype: str
    activation_dtype: str
    num_threads: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool
    time_steps: bool
    device_id: int
    need_nz: bool | None
    communication_backend: str
    eos_token_ids: list[int]
    on_progress: Callable[[int, int], None] | None

    def __init__(self) -> None: ...

class LoadedModel:
    """A model that is ready to serve."""

    def __init__(self, config: ModelConfig, weights: WeightTable, options: EngineOptions) -> None:
        """Raises ConfigError, CheckpointError or BackendError."""

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raises RequestError unless submit() would take the request."""

    def submit(self, prompt: Sequence[int], params: SamplingParams, queue: OutputQueue, mask: bytes = b"") -> int:
        """Queues a request and returns its id.

        With a mask of its first token, a bit a token, each further token of a sample waits for `set_token_mask`.
        Raises RequestError.
        """

    def set_token_mask(self, request: int, sample: int, mask: bytes) -> None:
        """Gives the mask of a sample's next token. Raises RequestError."""

    def cancel(self, request: int, sample: int | None = None) -> None:
        """Ends a request, or one sample of it that has given a token; their last events still come."""

    def cancel_all(self, queue: OutputQueue) -> None:
        """Ends all requests of a queue."""

    def forward(
        self,
        token_ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        seq_begin: npt.NDArray[np.int32],
        context_len: npt.NDArray[np.int32],
        block_table: npt.NDArray[np.int32],
        logit_rows: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """Runs one step batch; see llm_boost.Model.forward. Raises RequestError."""

    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, int]: ...

def architecture_names() -> list[str]:
    """Architectures that can be built."""

def expected_weights(config: ModelConfig) -> list[tuple[str, list[int]]]:
    """Canonical names and shapes of all weights of a model. Raises ConfigError."""

def graph_text(config: ModelConfig) -> str:
    """The model's graphs, one line a node. Raises ConfigError."""

def backend_names() -> list[str]:
    """Backends of this build, best first."""

def default_backend() -> str:
    """The backend that "auto" means."""

def device_report() -> dict[str, Any]:
    """What is known of the NPUs of this machine; never raises."""

def return_free_memory() -> None:
    """Gives back to the system what the C library keeps of freed memory."""

def usable_threads() -> int:
    """Threads that the affinity mask and the CPU quota allow."""

def isa_levels() -> list[str]:
    """Instruction set levels of this machine, best first."""

def convert_elements(
    source: npt.NDArray[np.uint8], dtype: str, target: npt.NDArray[np.uint8], target_dtype: str
) -> int:
    """Converts the elements that the bytes are; gives the index of the first finite one that became infinite, or -1."""
