"""A model's config: read from a Hugging Face directory, checked, and handed to the core."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_boost import _core
from llm_boost._json import read_json_object
from llm_boost.errors import ConfigError
from llm_boost.rope import RopeScaling, read_hugging_face_scaling

# What config.json calls an architecture -> what the core calls it.
ARCHITECTURES: Mapping[str, str] = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}

# Far above any in use (1e4 to 1e8), and low enough that no stretched frequency leaves the range of float32.
MAX_ROPE_THETA = 1e12


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape, numeric settings and special tokens of a model.

    Attributes:
        architecture: The core's name of the architecture, "llama" or "qwen2".
        head_dim: Size of one attention head; queries have ``num_heads`` of them, keys and values ``num_kv_heads``.
        max_position_embeddings: The context length that the model was trained for, in tokens.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are stretched over contexts longer than those of the first training.
        rope_dtype: Cosines and sines are rounded to this type: "float32", "float16" or "bfloat16".
        output_bias: Whether the attention's output projection has a bias.
        eos_token_ids: Tokens that end a text.
        generation_defaults: What generation_config.json says about sampling, under Hugging Face names.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    qkv_bias: bool
    output_bias: bool
    tie_word_embeddings: bool
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    rope_dtype: str = "float32"
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_directory(directory: Path) -> ModelConfig:
        """Reads config.json and, where there is one, generation_config.json.

        Raises:
            ConfigError: A file is missing or malformed, or asks for something that is not supported. All problems of
                config.json are listed in one error.
        """
        path = directory / "config.json"
        try:
            exists = path.exists()
        except OSError as problem:
            raise ConfigError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
        if not exists:
            raise ConfigError(
                f"{directory}: has no config.json, which describes the model; copy it beside the weights, "
                "or load them with a run config that describes the model"
            )
        reader = _Reader(path, read_json_object(path, ConfigError))
        generation_path = directory / "generation_config.json"
        generation = read_json_object(generation_path, ConfigError) if os.path.lexists(generation_path) else {}
        return reader.model_config(generation)

    @property
    def longest_context(self) -> int:
        """Most tokens of a sequence that may be asked for; more than the trained length where rope scaling allows."""
        return self.rope_scaling.longest_context(self.max_position_embeddings)

    def to_core(self, max_positions: int) -> _core.ModelConfig:
        """The core's record of this config, for positions up to `max_positions` - 1."""
        core = _core.ModelConfig()
        core.architecture = self.architecture
        core.hidden_size = self.hidden_size
        core.intermediate_size = self.intermediate_size
        core.num_layers = self.num_layers
        core.num_heads = self.num_heads
        core.num_kv_heads = self.num_kv_heads
        core.head_dim = self.head_dim
        core.vocab_size = self.vocab_size
        core.max_positions = max_positions
        core.rms_norm_eps = self.rms_norm_eps
        core.qkv_bias = self.qkv_bias
        core.output_bias = self.output_bias
        core.tie_word_embeddings = self.tie_word_embeddings
        rope = self.rope_scaling.rope(self.head_dim, self.rope_theta, max_positions)
        core.rope_inv_freq = list(rope.inv_freq)
        core.rope_position_scale = rope.position_scale
        core.rope_amplitude = rope.amplitude
        core.rope_dtype = self.rope_dtype
        return core


class _Reader:
    """Takes values out of config.json and collects what is wrong with them."""

    # Large enough for any model; the core checks more closely.
    _MAX_INT = 1 << 24

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values
        self._problems: list[str] = []

    def model_config(self, generation: Mapping[str, Any]) -> ModelConfig:
        architecture = self._architecture()
        self._refuse_unsupported(architecture)
        hidden_size = self._integer("hidden_size")
        num_heads = self._integer("num_attention_heads")
        head_dim = self._integer("head_dim", default=hidden_size // max(num_heads, 1))
        attention_bias = self._boolean("attention_bias", default=False) if architecture == "llama" else False
        max_position_embeddings = self._integer("max_position_embeddings", default=2048)
        config = ModelConfig(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=self._integer("intermediate_size"),
            num_layers=self._integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=self._integer("num_key_value_heads", default=num_heads),
            head_dim=head_dim,
            vocab_size=self._integer("vocab_size"),
            max_position_embeddings=max_position_embeddings,
            rms_norm_eps=self._number("rms_norm_eps", default=1e-6),
            rope_theta=self._rope_theta(),
            qkv_bias=attention_bias or architecture == "qwen2",
            output_bias=attention_bias,
            tie_word_embeddings=self._boolean("tie_word_embeddings", default=False),
            bos_token_id=self._token_id(generation, "bos_token_id"),
            pad_token_id=self._token_id(generation, "pad_token_id"),
            eos_token_ids=self._token_ids(generation, "eos_token_id"),
            rope_scaling=self._rope_scaling(max_position_embeddings),
            generation_defaults=dict(generation),
        )
        self._raise_problems()
        return config

    def _raise_problems(self) -> None:
        if self._problems:
            raise ConfigError(f"{self._path}: cannot be used:\n  " + "\n  ".join(self._problems))

    def _architecture(self) -> str:
        names = self._values.get("architectures")
        name = names[0] if isinstance(names, list) and len(names) == 1 else names
        if not isinstance(name, str) or name not in ARCHITECTURES:
            self._problems.append(f"architectures is {names!r:.100}, expected one of {', '.join(ARCHITECTURES)}")
            self._raise_problems()  # nothing else can be judged
        return ARCHITECTURES[str(name)]

    def _refuse_unsupported(self, architecture: str) -> None:
        values = self._values
        if values.get("hidden_act", "silu") != "silu":
            self._problems.append(f"hidden_act is {values['hidden_act']!r}, only 'silu' is supported")
        if values.get("quantization_config"):
            self._problems.append(
                "quantization_config: quantised checkpoints are not supported; use a float checkpoint"
            )
        if architecture == "llama" and values.get("mlp_bias"):
            self._problems.append("mlp_bias is true, which is not supported")
        if values.get("use_sliding_window"):
            self._problems.append("use_sliding_window is true: sliding-window attention is not supported")
        layer_types = values.get("layer_types")
        if isinstance(layer_types, list) and set(layer_types) - {"full_attention"}:
            self._problems.append(
                f"layer_types has {sorted(set(map(str, layer_types)))}, only 'full_attention' is supported"
            )
        if values.get("partial_rotary_factor", 1.0) != 1.0:
            self._problems.append("partial_rotary_factor is not 1, which is not supported")

    def _rope_scaling(self, max_position_embeddings: int) -> RopeScaling:
        # Newer configs have rope_parameters; where both are there, the older name wins, as in transformers.
        key = "rope_scaling" if self._values.get("rope_scaling") else "rope_parameters"
        settings = self._values.get(key) or {}
        if not isinstance(settings, dict):
            self._problems.append(f"{key} is {settings!r:.40}, expected an object")
            return RopeScaling()
        if settings.get("partial_rotary_factor", 1.0) != 1.0:
            self._problems.append(f"partial_rotary_factor of {key} is not 1, which is not supported")
        original = self._values.get("original_max_position_embeddings")
        if original is not None and settings.get("rope_type", settings.get("type")) in ("yarn", "llama3"):
            settings = {**settings, "original_max_position_embeddings": original}  # its older home, which wins
        scaling, problems = read_hugging_face_scaling(settings, max_position_embeddings)
        self._problems += (f"{key}: {problem}" for problem in problems)
        return scaling

    def _rope_theta(self) -> float:
        parameters = self._values.get("rope_parameters")  # where newer configs keep it
        home = parameters if isinstance(parameters, dict) and "rope_theta" in parameters else self._values
        theta = self._number("rope_theta", default=10000.0, values=home)
        if not 1 < theta <= MAX_ROPE_THETA:
            self._problems.append(f"rope_theta is {theta}, expected a number above 1, at most {MAX_ROPE_THETA:g}")
        return theta

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value <= self._MAX_INT:
            self._problems.append(f"{key} is {value!r:.40}, expected an integer from 1 to {self._MAX_INT}")
            return 1
        return value

    def _number(self, key: str, default: float, values: Mapping[str, Any] | None = None) -> float:
        value = (self._values if values is None else values).get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            self._problems.append(f"{key} is {value!r:.40}, expected a positive number")
            return default
        return float(value)

    def _boolean(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if type(value) is not bool:
            self._problems.append(f"{key} is {value!r:.40}, expected true or false")
            return default
        return value

    def _token_ids(self, generation: Mapping[str, Any], key: str) -> tuple[int, ...]:
        # What generation_config.json says replaces config.json, as in the reference implementation.
        value = generation.get(key, self._values.get(key))
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        vocab_size = self._values.get("vocab_size")
        limit = vocab_size if type(vocab_size) is int else self._MAX_INT
        if any(type(token) is not int or not 0 <= token < limit for token in ids):
            self._problems.append(f"{key} is {value!r:.100}, expected token ids from 0 to {limit - 1}")
            return ()
        return tuple(ids)

    def _token_id(self, generation: Mapping[str, Any], key: str) -> int | None:
        ids = self._token_ids(generation, key)
        return ids[0] if ids else None
