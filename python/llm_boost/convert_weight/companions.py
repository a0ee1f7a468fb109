"""What belongs to a model besides its weights: the config, and the files that are copied with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llm_boost._json import read_json_object
from llm_boost.errors import ConfigError
from llm_boost.model_config import ARCHITECTURES, ModelConfig
from llm_boost.rope import RopeScaling
from llm_boost.run_config import load_config
from llm_boost.run_config.resolve import config_of_run

_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_RUN_CONFIGS = (".yaml", ".yml")


def read_config(source: Path, config_path: Path | None, architecture: str | None = None) -> ModelConfig:
    """The config of the model in a checkpoint.

    Args:
        source: The checkpoint, beside which config.json is expected.
        config_path: Where it is otherwise: config.json, a directory that has it, or a run config.
        architecture: "llama" or "qwen2", which the model must be; None for either.

    Raises:
        ConfigError: The config is missing, cannot be used, or is of another architecture.
    """
    path = config_path or _directory(source)
    if path.suffix in _RUN_CONFIGS:
        config = config_of_run(load_config(path), source)
    elif not os.path.isdir(_config_directory(path)):
        what = "is not" if os.path.lexists(path) else "does not exist; expected"
        raise ConfigError(f"{path}: {what} a config.json, a directory that has one, or a run config (.yaml)")
    else:
        config = ModelConfig.from_directory(_config_directory(path))
    if architecture not in (None, config.architecture):
        raise ConfigError(f"{path}: is a {config.architecture} model, but --model is {architecture}")
    return config


def write_companions(source: Path, config_path: Path | None, config: ModelConfig, target: Path, dtype: str) -> None:
    """Gives the model directory `target` its config.json and, where there are some, the tokenizer's files.

    Args:
        source: As for `read_config`.
        config_path: As for `read_config`.
        config: What `read_config` made of them.
        target: The directory.
        dtype: The type of the weights, which config.json is to name.

    Raises:
        ConfigError: Hugging Face has no way to say what the run config says.
    """
    path = config_path or _directory(source)
    if path.suffix in _RUN_CONFIGS:
        values = _hugging_face_config(config, path)
    else:
        for file in (_config_directory(path) / name for name in _FILES):
            if file.is_file():
                (target / file.name).write_bytes(_read(file))
        values = read_json_object(target / "config.json", ConfigError)
    key = "dtype" if "dtype" in values else "torch_dtype"  # newer versions of transformers, and older ones
    if values.get(key) != dtype:
        text = json.dumps(values | {key: dtype}, indent=2)
        (target / "config.json").write_text(text + "\n", encoding="utf-8")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror or problem}") from problem


def _directory(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _config_directory(path: Path) -> Path:
    return path.parent if path.name == "config.json" else path


def _hugging_face_config(config: ModelConfig, where: Path) -> dict[str, Any]:
    """config.json of a model: what `ModelConfig.from_directory` reads back."""
    if config.rope_scaling != RopeScaling():
        raise ConfigError(f"{where}: has an extend_method, for which config.json has no word; give a config.json")
    if config.architecture == "llama" and config.qkv_bias != config.output_bias:
        raise ConfigError(f"{where}: has biases of a kind for which config.json has no word; give a config.json")
    return {
        "architectures": [name for name, ours in ARCHITECTURES.items() if ours == config.architecture],
        "model_type": config.architecture,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": config.output_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
    }
