"""`LlmBoostConfig`: the ``model_config`` of a run YAML, and what the engine makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from llm_boost import _core
from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError
from llm_boost.integrations.mindspore.rotary import Table
from llm_boost.rope import METHODS, RopeScaling, read_scaling
from llm_boost.run_config.keys import Parser
from llm_boost.run_config.sections import ModelConfigSection

_T = TypeVar("_T")

_PARSERS: Mapping[str, Parser] = {item.name: item.metadata["parse"] for item in fields(ModelConfigSection)}

# llm_backend -> the core's name.
BACKENDS: Mapping[str, str] = {"BuildIn": "auto", "LLMBoost": "auto", "ATB": "atb", "CPU": "cpu"}

# compute_dtype -> type of activations and of the KV cache. The CPU computes float16 models in float32, which holds all
# of their numbers.
_ACTIVATION_DTYPES: Mapping[str, str] = {"bfloat16": "bfloat16", "float16": "float32", "float32": "float32"}


@dataclass(slots=True, init=False)
class LlmBoostConfig:
    """The config of a boosted model, under MindFormers' names and with its defaults.

    Attributes:
        llm_backend: "BuildIn" for the best backend there is, "ATB" or "CPU".
        boost_model_name: "Llama" or "Qwen".
        batch_size: Sequences computed at once; a step may bring more and is then cut.
        seq_length: Most tokens of a sequence, prompt and output.
        hidden_size: Width of the model; a head has hidden_size / num_heads of it.
        n_kv_heads: Heads of keys and values; None for num_heads.
        intermediate_size: Width of the feed-forward part; None for that of the weights.
        vocab_size: Number of tokens; None for that of the weights.
        max_position_embedding: Positions of the rotary table; None for seq_length.
        rms_norm_eps: Added to the mean square in RMSNorm.
        theta: Base of the rotary frequencies.
        scaling_factor: Of `extend_method`.
        extend_method: How the rotary frequencies are stretched; see `llm_boost.rope`.
        compute_dtype: Type of activations and KV cache; float16 means float32 on the CPU.
        rotary_dtype: Type that cosines and sines are rounded to.
        use_past: Must be True: the KV cache is always used.
        block_size: Tokens of a KV cache block.
        num_blocks: Blocks of the KV cache.
        is_dynamic: Whether prompts come unpadded; see `LlmBoostForCausalLM.prepare_inputs_for_generation`.
        max_decode_length: Default of `generate`: most tokens of prompt and output.
        need_nz: Weights and cache in the NZ format; None as the chip demands.
        communication_backend: Between devices, "lccl", "hccl" or "".
        device_id: The accelerator.
        max_new_tokens: Default of `generate`: most tokens of the output; goes before max_decode_length.
        min_new_tokens: Default of `generate`: least tokens of the output.
    """

    llm_backend: str = "BuildIn"
    boost_model_name: str = ""
    batch_size: int = 1
    seq_length: int = 2048
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    n_kv_heads: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    max_position_embedding: int | None = None
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] = 2
    pad_token_id: int | None = 0
    theta: float = 10000.0
    scaling_factor: Any = 1.0
    extend_method: str = "None"
    compute_dtype: Any = "float16"
    rotary_dtype: Any = "float16"
    use_past: bool = True
    block_size: int = 16
    num_blocks: int = 512
    is_dynamic: bool = False
    max_decode_length: int = 1024
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 5
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    need_nz: bool | None = None
    communication_backend: str = ""
    device_id: int = 0
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None

    def __init__(self, **values: Any) -> None:
        """Takes the keys of a run YAML's ``model_config``, see ``docs/run-configs.md``, and `device_id`.

        Those that are no attributes are checked and left out: they have no effect, or the weights say the same.

        Raises:
            ConfigError: A key is unknown, or asks for what is not supported.
        """
        known = {item.name: item.default for item in fields(type(self))}
        others = {name: parse for name, parse in _PARSERS.items() if name not in known}
        accepted = [*known, *others, *ModelConfigSection.UNUSED]
        if unknown := sorted(values.keys() - {*accepted}):
            raise ConfigError(unknown_name("key of LlmBoostConfig", unknown[0], accepted, list_known=False))
        for name in others.keys() & {name for name, value in values.items() if value is not None}:
            _check(name, values[name], others[name])
        for name, default in known.items():
            setattr(self, name, values.get(name, default))


def _check(name: str, value: object, parse: Parser) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise ConfigError(f"{name} is {value!r:.40}, {error}") from None


@dataclass(frozen=True, slots=True)
class BoostSettings:
    """What a boost reads from a config, checked.

    Any object with the attributes of `LlmBoostConfig` will do as a config, MindFormers' own class for one.

    Attributes:
        eos_token_ids: Tokens that end a text.
        backend: The core's name of the backend.
        rotary_dtype: "float32", "float16" or "bfloat16".
        activation_dtype: "float32" or "bfloat16".
    """

    seq_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int | None
    vocab_size: int | None
    rms_norm_eps: float
    theta: float
    rope_scaling: RopeScaling
    batch_size: int
    block_size: int
    num_blocks: int
    eos_token_ids: tuple[int, ...]
    backend: str
    rotary_dtype: str
    activation_dtype: str
    need_nz: bool | None
    communication_backend: str
    device_id: int

    @staticmethod
    def read(config: object) -> BoostSettings:
        """Reads a config.

        Raises:
            ConfigError: An attribute is missing or has a value that cannot be used.
        """
        hidden_size, num_heads = _positive(config, "hidden_size"), _positive(config, "num_heads")
        if hidden_size % num_heads:
            raise ConfigError(f"hidden_size is {hidden_size}, which is not a multiple of num_heads {num_heads}")
        if not _get(config, "use_past", True):
            raise ConfigError("use_past is False, expected True: the engine always uses its KV cache")
        seq_length = _positive(config, "seq_length")
        return BoostSettings(
            seq_length=seq_length,
            hidden_size=hidden_size,
            num_layers=_positive(config, "num_layers"),
            num_heads=num_heads,
            num_kv_heads=_positive(config, "n_kv_heads", num_heads),
            head_dim=hidden_size // num_heads,
            intermediate_size=_get(config, "intermediate_size", None),
            vocab_size=_get(config, "vocab_size", None),
            rms_norm_eps=_parsed(config, "rms_norm_eps", 1e-5),
            theta=_parsed(config, "theta", 10000.0),
            rope_scaling=_rope_scaling(config, seq_length),
            batch_size=_positive(config, "batch_size", 1),
            block_size=_positive(config, "block_size"),
            num_blocks=_positive(config, "num_blocks"),
            eos_token_ids=_parsed(config, "eos_token_id", ()),
            backend=_choice(config, "llm_backend", BACKENDS, "BuildIn"),
            rotary_dtype=_choice(config, "rotary_dtype", {name: name for name in _ACTIVATION_DTYPES}, "float16"),
            activation_dtype=_choice(config, "compute_dtype", _ACTIVATION_DTYPES, "float16"),
            need_nz=_parsed(config, "need_nz", None),
            communication_backend=_parsed(config, "communication_backend", ""),
            device_id=_get(config, "device_id", 0),
        )

    def rotary_tables(self) -> tuple[Table, Table]:
        """Cosines and sines of angle = position * frequency, [seq_length, head_dim / 2], rounded to `rotary_dtype`."""
        rope = self.rope_scaling.rope(self.head_dim, self.theta, self.seq_length)
        positions = np.arange(self.seq_length, dtype=np.float32) * np.float32(rope.position_scale)
        angles = np.outer(positions, np.asarray(rope.inv_freq, np.float32)).astype(np.float64)
        dtype = ml_dtypes.bfloat16 if self.rotary_dtype == "bfloat16" else self.rotary_dtype
        cos, sin = (
            (function(angles).astype(np.float32) * np.float32(rope.amplitude)).astype(dtype).astype(np.float32)
            for function in (np.cos, np.sin)
        )
        return cos, sin

    def engine_options(self, dtype: str) -> _core.EngineOptions:
        """The core's record of these settings, for weights of type `dtype` or "auto"."""
        options = _core.EngineOptions()
        options.backend, options.dtype, options.activation_dtype = self.backend, dtype, self.activation_dtype
        options.block_size, options.num_blocks, options.max_model_len = (
            self.block_size,
            self.num_blocks,
            self.seq_length,
        )
        options.max_num_seqs = max(options.max_num_seqs, self.batch_size)
        options.max_num_batched_tokens = max(options.max_num_batched_tokens, self.batch_size)
        options.eos_token_ids = list(self.eos_token_ids)
        options.need_nz, options.communication_backend = self.need_nz, self.communication_backend
        options.device_id = self.device_id
        return options


def _rope_scaling(config: object, seq_length: int) -> RopeScaling:
    method = _choice(config, "extend_method", {name: name for name in METHODS}, "NONE")
    factor = _get(config, "scaling_factor", 1.0)
    settings = factor if isinstance(factor, Mapping) else {} if method == "NONE" else {"factor": factor}
    max_position = max(_positive(config, "max_position_embedding", seq_length), seq_length)
    scaling, problems = read_scaling(method, settings, max_position, freqs_mgr=True)
    if problems:
        raise ConfigError("scaling_factor: " + "; ".join(problems))
    return scaling


def _get(config: object, name: str, default: _T) -> _T:
    """An attribute; the default where it is missing or None."""
    value = getattr(config, name, None)
    return default if value is None else value


def _parsed(config: object, name: str, default: object) -> Any:
    """An attribute, checked as the key of a run config is; the default where it is missing or None."""
    value = getattr(config, name, None)
    if value is None:
        return default
    return _check(name, list(value) if isinstance(value, tuple) else value, _PARSERS[name])


def _positive(config: object, name: str, default: int = 0) -> int:
    value = _get(config, name, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ConfigError(f"{name} is {value!r:.40}, expected a positive integer")
    return value


def _choice(config: object, name: str, known: Mapping[str, str], default: str) -> str:
    """What `known` says for a name, or for a MindSpore type of that name."""
    value = str(_get(config, name, default))
    by_lower = {key.lower(): meaning for key, meaning in known.items()}
    if value.lower() not in by_lower:
        raise ConfigError(unknown_name(name, value, known))
    return by_lower[value.lower()]
