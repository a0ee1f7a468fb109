"""Models with random weights, in the form that Hugging Face publishes: for shapes whose speed alone matters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_NOISE = 1 << 22  # random numbers that all tensors are cut from, each from a place of its own
_STDDEV = 0.02


def write_random_model(directory: Path, config: dict[str, object]) -> None:
    """Writes a Llama or Qwen2 of these extents, a shard a layer.

    Args:
        directory: Where to; made if it is not there.
        config: Its config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(directory)
    random = np.random.default_rng(1)
    noise = (random.standard_normal(_NOISE, np.float32) * _STDDEV).astype(ml_dtypes.bfloat16)
    shards: dict[str, str] = {}
    for number, names in enumerate(_shards(config)):
        file = f"model-{number:05}.safetensors"
        tensors = {name: _tensor(shape, noise, random) for name, shape in names.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(directory: Path) -> None:
    """A token a byte: prompts are token ids, but engines want some tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))


def _tensor(shape: tuple[int, ...], noise: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return (1 + noise[: shape[0]].astype(np.float32)).astype(ml_dtypes.bfloat16)
    size = int(np.prod(shape))
    start = int(random.integers(len(noise)))
    return np.resize(np.roll(noise, -start), size).reshape(shape)


def _shards(config: dict[str, object]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, a layer at a time."""

    def extent(name: str) -> int:
        return int(str(config[name]))

    hidden, ffn, vocab = extent("hidden_size"), extent("intermediate_size"), extent("vocab_size")
    kv = hidden // extent("num_attention_heads") * extent("num_key_value_heads")
    outer: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        outer["lm_head.weight"] = (vocab, hidden)
    yield outer
    for layer in range(extent("num_hidden_layers")):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        if config["model_type"] == "qwen2":
            shapes |= {f"self_attn.{x}_proj.bias": (rows,) for x, rows in (("q", hidden), ("k", kv), ("v", kv))}
        yield {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}
