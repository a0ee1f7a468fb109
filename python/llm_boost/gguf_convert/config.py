"""Turns GGUF metadata into a Hugging Face ``config.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_boost._suggest import unknown_name
from llm_boost.errors import CheckpointError
from llm_boost.gguf_convert.reader import GgufFile

ROPE_FACTORS = "rope_freqs.weight"

_CLASS_NAMES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_ROPE_SCALINGS = ("none", "linear", "yarn")
_DEFAULT_ROPE_THETA = 10000.0  # the format's
_MAX_SIZE = 1 << 24  # of any dimension: no model comes near it

# Keys below the architecture's name that are converted, or say nothing about the computation.
_KNOWN_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
        "vocab_size",
    }
)
# Keys of features that a config of these classes has no words for, and the value that switches each off.
_OFF_VALUES: dict[str, object] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}


@dataclass(frozen=True, slots=True)
class Dims:
    """The architecture of a model and its sizes."""

    architecture: str  # a key of `_CLASS_NAMES`
    num_layers: int  # L
    hidden: int  # E
    ffn: int  # F
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # D
    vocab: int  # V, rows of the embedding
    max_positions: int


def read_dims(gguf: GgufFile) -> Dims:
    """Reads the architecture and the sizes of the model in `gguf`.

    Raises:
        CheckpointError: The architecture is not supported, or the metadata is incomplete or contradictory.
    """
    architecture = gguf.get("general.architecture", str)
    if architecture not in _CLASS_NAMES:
        raise CheckpointError(f"{gguf.path}: {unknown_name('GGUF architecture', architecture, _CLASS_NAMES)}")
    if gguf.get("split.count", int, 1) > 1:
        raise CheckpointError(f"{gguf.path}: one of several parts; join them ('llama-gguf-split --merge')")
    _reject_unknown_keys(gguf, architecture)

    def size(name: str, default: int | None = None) -> int:
        key = f"{architecture}.{name}"
        value = gguf.get(key, int, default)
        if not 0 < value <= _MAX_SIZE:
            raise CheckpointError(f"{gguf.path}: metadata key '{key}' is {value}, expected 1 to {_MAX_SIZE}")
        return value

    hidden, num_heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", size("rope.dimension_count", hidden // num_heads))
    embedding = gguf.tensors.get("token_embd.weight")
    num_rows = embedding.shape[0] if embedding else len(gguf.get_strings("tokenizer.ggml.tokens"))
    dims = Dims(
        architecture=architecture,
        num_layers=size("block_count"),
        hidden=hidden,
        ffn=size("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=size("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab=size("vocab_size", num_rows),
        max_positions=size("context_length"),
    )
    problems = (
        (num_heads % dims.num_kv_heads, f"{num_heads} heads cannot share {dims.num_kv_heads} kv heads"),
        (head_dim % 2, f"the head size {head_dim} is odd"),
        (size("attention.value_length", head_dim) != head_dim, "keys and values differ in size"),
        (size("rope.dimension_count", head_dim) != head_dim, "only a part of each head is rotated"),
        # Every layer has tensors of its own; this also bounds what a damaged count can ask for.
        (dims.num_layers > len(gguf.tensors), f"{len(gguf.tensors)} tensors, but {dims.num_layers} layers"),
    )
    if found := [problem for holds, problem in problems if holds]:
        raise CheckpointError(f"{gguf.path}: not a {_CLASS_NAMES[architecture]}: {'; '.join(found)}")
    return dims


def hf_config(gguf: GgufFile, dims: Dims) -> dict[str, Any]:
    """Returns the contents of ``config.json``, but for the token ids.

    Raises:
        CheckpointError: The metadata is damaged, or asks for rope scaling that a config cannot express.
    """
    prefix = dims.architecture
    config: dict[str, Any] = {
        "architectures": [_CLASS_NAMES[dims.architecture]],
        "model_type": dims.architecture,
        "hidden_size": dims.hidden,
        "intermediate_size": dims.ffn,
        "num_hidden_layers": dims.num_layers,
        "num_attention_heads": dims.num_heads,
        "num_key_value_heads": dims.num_kv_heads,
        "head_dim": dims.head_dim,
        "vocab_size": dims.vocab,
        "max_position_embeddings": dims.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": _positive(gguf, f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_theta": _positive(gguf, f"{prefix}.rope.freq_base", _DEFAULT_ROPE_THETA),
        "rope_scaling": _rope_scaling(gguf, dims),
        "attention_dropout": 0.0,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if dims.architecture == "llama":
        return config | {"attention_bias": "blk.0.attn_q.bias" in gguf.tensors, "mlp_bias": False}
    return config | {"use_sliding_window": False}


def _reject_unknown_keys(gguf: GgufFile, architecture: str) -> None:
    prefix = f"{architecture}."
    unknown = []
    for key, value in gguf.metadata.items():
        name = key.removeprefix(prefix)
        off = isinstance(value, int | float) and _OFF_VALUES.get(name) == value
        if key.startswith(prefix) and name not in _KNOWN_KEYS and not off:
            unknown.append(f"{key} = {value!r}"[:80])
    if unknown:
        raise CheckpointError(
            f"{gguf.path}: has metadata that a config of {_CLASS_NAMES[architecture]} cannot express, so the "
            f"result would be another model: {', '.join(unknown)}"
        )


def _positive(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value = gguf.get(key, float, default)
    if not 0 < value < math.inf:
        raise CheckpointError(f"{gguf.path}: metadata key '{key}' is {value}, expected a positive number")
    return value


def _rope_scaling(gguf: GgufFile, dims: Dims) -> dict[str, Any] | None:
    prefix = f"{dims.architecture}.rope.scaling"
    kind = gguf.get(f"{prefix}.type", str, "none")
    if kind not in _ROPE_SCALINGS:
        raise CheckpointError(f"{gguf.path}: {unknown_name('rope scaling', kind, _ROPE_SCALINGS)}")
    if ROPE_FACTORS in gguf.tensors:
        if kind != "none":
            raise CheckpointError(f"{gguf.path}: has '{ROPE_FACTORS}' and {kind} rope scaling, expected one")
        return _llama3_scaling(gguf, dims)
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _positive(gguf, f"{prefix}.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = gguf.get(f"{prefix}.original_context_length", int)
        for name in ("beta_fast", "beta_slow"):
            if f"{prefix}.yarn_{name}" in gguf.metadata:
                scaling[name] = _positive(gguf, f"{prefix}.yarn_{name}")
    return scaling


def _llama3_scaling(gguf: GgufFile, dims: Dims) -> dict[str, Any]:
    """Recovers the parameters of Llama 3's rope scaling from the factors ``[D / 2]`` that came of them.

    The factor of the slowest frequency is the scaling factor itself. The other parameters have been the same
    in every model so far; whether they are here shows when all factors are computed again.
    """
    factors = gguf.dequantise(ROPE_FACTORS, gguf.read(ROPE_FACTORS)).ravel()
    theta = _positive(gguf, f"{dims.architecture}.rope.freq_base", _DEFAULT_ROPE_THETA)
    parameters = {
        "factor": float(str(factors[-1])),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with np.errstate(all="ignore"):
        expected = llama3_factors(dims.head_dim, theta, **parameters)
    # Converters compute in float32. Frequencies are good to 1e-6 then, which the passage between the two
    # factors magnifies by up to `factor`.
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"{gguf.path}: '{ROPE_FACTORS}' does not come of Llama 3 rope scaling with {parameters}, and a "
            "config can express no other factors"
        )
    return {"rope_type": "llama3", **parameters}


def llama3_factors(
    head_dim: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> npt.NDArray[np.float64]:
    """Returns what Llama 3's rope scaling divides each frequency by, ``[D / 2]``.

    Waves that fit `high_freq_factor` times or more into the original context stay as they are, those that fit
    `low_freq_factor` times or less are stretched by `factor`, and a smooth passage joins the two.
    """
    wavelen = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = original_max_position_embeddings / wavelen
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    factors: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return factors
