"""Tiny random models as Hugging Face directories, written without torch: config, weights, tokenizer."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .numpy_decoder import Array, DecoderConfig

END_OF_TEXT = "<|endoftext|>"

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_DTYPES = {
    "bf16": ("bfloat16", ml_dtypes.bfloat16),
    "f16": ("float16", np.float16),
    "f32": ("float32", np.float32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """The shape of a tiny model; without `head_dim`, config.json lacks it too, which means hidden / heads."""

    arch: Literal["llama", "qwen2"] = "llama"
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    layers: int = 2
    ffn: int = 176
    vocab: int = 257
    tie: bool = False
    dtype: Literal["bf16", "f16", "f32"] = "bf16"
    shards: int = 1
    theta: float = 10000.0
    eps: float = 1e-5
    max_position: int = 512

    @property
    def end_of_text(self) -> int:
        """The id of `END_OF_TEXT`: after the 256 bytes, or last in a vocabulary too small for them."""
        return min(256, self.vocab - 1)

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        config = {
            "architectures": [_ARCHITECTURES[self.arch]],
            "model_type": self.arch,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "tie_word_embeddings": self.tie,
            "hidden_act": "silu",
            "torch_dtype": _DTYPES[self.dtype][0],
            "bos_token_id": None,
            "eos_token_id": self.end_of_text,
        }
        return {key: value for key, value in config.items() if value is not None}


# Names say what is special. Together: both architectures, tied and untied, every dtype, head sizes 8 to 128,
# sizes that fill no SIMD register, and vocabularies that are no multiple of 16.
TINY_SPECS: Mapping[str, TinySpec] = {
    "llama_mha": TinySpec(kv_heads=4),
    "llama_gqa_tied": TinySpec(heads=8, tie=True, ffn=100, vocab=1000),
    "llama_mqa_f32": TinySpec(kv_heads=1, dtype="f32", layers=3, theta=500000.0),
    "llama_f16": TinySpec(dtype="f16", ffn=100, eps=1e-6),
    "llama_hidden_576": TinySpec(hidden=576, heads=9, kv_heads=3, ffn=300, tie=True, theta=100000.0),
    "llama_head_128": TinySpec(hidden=256, heads=2, kv_heads=1, ffn=172, vocab=1000),
    "llama_wide_heads": TinySpec(hidden=48, heads=6, kv_heads=3, head_dim=24, ffn=68, vocab=49),
    "llama_sharded": TinySpec(shards=3, layers=3),
    "qwen2_tied": TinySpec(arch="qwen2", hidden=112, heads=14, tie=True, ffn=300, eps=1e-6, theta=1e6),
    "qwen2_f16": TinySpec(arch="qwen2", hidden=56, heads=7, kv_heads=1, vocab=1000, dtype="f16", eps=1e-6),
    "qwen2_sharded_f32": TinySpec(arch="qwen2", head_dim=32, vocab=49, dtype="f32", shards=2, eps=1e-6),
}


def write_tiny_model(directory: Path, spec: TinySpec, seed: int = 0) -> Path:
    """Writes a model that depends on `spec` and `seed` alone, and returns `directory`, made if need be.

    The tokenizer, one token per byte, is left out where the vocabulary has no room for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", spec.config())
    generation = {"do_sample": False, "eos_token_id": spec.end_of_text, "pad_token_id": spec.end_of_text}
    _write_json(directory / "generation_config.json", generation)
    _write_weights(directory, spec, seed)
    if spec.vocab > 256:
        _write_tokenizer(directory, spec)
    return directory


def _random_weight(name: str, shape: tuple[int, ...], spec: TinySpec, seed: int) -> Array:
    """A weight scaled so that every part of the model matters and logits spread by about 3.

    The embedding is small, as in trained models, so that a wrong epsilon shows and tied logits do not merely
    repeat the last token. Queries and keys of size 1.4 spread the attention scores by 2: the attention is
    neither uniform nor one-hot.
    """
    # Golden files need streams that stay as they are, which RandomState alone guarantees (NEP 19).
    rng = np.random.RandomState([seed, zlib.crc32(name.encode())])
    unit: Array = rng.uniform(-(3**0.5), 3**0.5, shape)  # mean 0, variance 1
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        mean, spread = 0.0, 0.1
    elif name.endswith("norm.weight"):
        mean = 3 / (0.1 * spec.hidden**0.5) if name == "model.norm.weight" else 1.0
        spread = 0.2 * mean
    elif name.endswith(".bias"):
        mean, spread = 0.0, 0.5
    else:
        gain = {"q_proj": 1.4, "k_proj": 1.4, "down_proj": 2.0}.get(name.split(".")[-2], 1.0)
        mean, spread = 0.0, gain * shape[1] ** -0.5
    return mean + spread * unit


def _write_weights(directory: Path, spec: TinySpec, seed: int) -> None:
    shapes = DecoderConfig.from_hugging_face(spec.config()).weight_shapes()
    dtype = _DTYPES[spec.dtype][1]
    tensors = {name: _random_weight(name, shape, spec, seed).astype(dtype) for name, shape in shapes.items()}
    if spec.shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i, names in enumerate(np.array_split(list(tensors), spec.shards), start=1):
        file = f"model-{i:05}-of-{spec.shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names.tolist(), file))
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_tokenizer(directory: Path, spec: TinySpec) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 bytes in their printable disguise
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    if tokenizer.token_to_id(END_OF_TEXT) != spec.end_of_text:
        raise ValueError(f"{END_OF_TEXT}: expected id {spec.end_of_text}")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    }
    _write_json(directory / "tokenizer_config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
