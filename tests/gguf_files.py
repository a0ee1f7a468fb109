"""Small GGUF files for the tests, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from tokenizers import pre_tokenizers

from llm_boost.gguf_convert import convert_gguf

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}

# What `GGUFWriter.add_tensor` takes: float32, or bytes and the type they are quantised to.
Tensor = np.ndarray | tuple[np.ndarray, GGMLQuantizationType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a tiny model."""

    hidden: int = 32
    ffn: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    layers: int = 2
    vocab: int = 261


def hf_weights(
    arch: str, sizes: Sizes, *, tie: bool = False, bias: bool | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random float32 weights under their Hugging Face names."""
    rng = np.random.default_rng(seed)
    q, kv, e, f = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.hidden, sizes.ffn
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocab, e),
        "model.norm.weight": (e,),
    }
    if not tie:
        shapes["lm_head.weight"] = (sizes.vocab, e)
    biased = ("q_proj", "k_proj", "v_proj") if arch == "qwen2" else ("q_proj", "k_proj", "v_proj", "o_proj")
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}."
        attention = {"q_proj": (q, e), "k_proj": (kv, e), "v_proj": (kv, e), "o_proj": (e, q)}
        for name, shape in attention.items():
            shapes[f"{prefix}self_attn.{name}.weight"] = shape
            if (arch == "qwen2" if bias is None else bias) and name in biased:
                shapes[f"{prefix}self_attn.{name}.bias"] = shape[:1]
        for name, shape in {"gate_proj": (f, e), "up_proj": (f, e), "down_proj": (e, f)}.items():
            shapes[f"{prefix}mlp.{name}.weight"] = shape
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (e,)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def gguf_tensors(arch: str, sizes: Sizes, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under their GGUF names, with q and k permuted where the format wants it."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[arch], sizes.layers)
    heads = {"q_proj": sizes.heads, "k_proj": sizes.kv_heads} if arch == "llama" else {}
    tensors = {}
    for name, values in weights.items():
        num_heads = heads.get(name.split(".")[-2])
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = (
            permute(values, num_heads) if num_heads else values
        )
    return tensors


def permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of each head from halves to neighbours, as the converter from Hugging Face does."""
    split = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def model_metadata(arch: str, sizes: Sizes) -> dict[str, Any]:
    """The metadata that describes the model."""
    return {
        f"{arch}.block_count": sizes.layers,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": sizes.hidden,
        f"{arch}.feed_forward_length": sizes.ffn,
        f"{arch}.attention.head_count": sizes.heads,
        f"{arch}.attention.head_count_kv": sizes.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 100000.0,
    }


def byte_vocabulary(num_rows: int = 261, pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of a byte-level vocabulary: the bytes, one merge, and control tokens."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    specials = [f"<|{index}|>" for index in range(num_rows - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + specials,
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(specials),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.padding_token_id": 259,
        "tokenizer.ggml.add_bos_token": False,
    }


def write_gguf(path: Path, arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Writes a GGUF file; integers become uint32, floats float32, and lists arrays."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path: Path, arch: str = "llama", sizes: Sizes = Sizes(), **changes: Any) -> Path:
    """Writes a whole small model; `changes` replaces metadata, or removes it where the value is None."""
    metadata = model_metadata(arch, sizes) | byte_vocabulary(sizes.vocab) | changes
    tensors = gguf_tensors(arch, sizes, hf_weights(arch, sizes, tie=True))
    return write_gguf(path, arch, {k: v for k, v in metadata.items() if v is not None}, tensors)


def convert(folder: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], arch: str = "llama") -> Path:
    """Writes a GGUF file into `folder`, and converts it there."""
    source = write_gguf(folder / "model.gguf", arch, metadata, tensors)
    return convert_gguf(source, folder / "model", progress=False)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Reads one of the JSON files of a model directory."""
    contents: dict[str, Any] = json.loads((directory / f"{name}.json").read_text("utf-8"))
    return contents


def read_bf16(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file by hand: the bits of every tensor, ``uint16``."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    del header["__metadata__"]
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16"
        begin, stop = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[end + begin : end + stop], "<u2").reshape(entry["shape"])
    return tensors


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Rounds float32 to bfloat16, to nearest and ties to even, by integer arithmetic."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
