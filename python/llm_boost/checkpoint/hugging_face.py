"""Weights of a Hugging Face model directory."""

from __future__ import annotations

from pathlib import Path

from llm_boost import _core
from llm_boost._json import read_json_object
from llm_boost.checkpoint.safetensors_file import read_safetensors_header
from llm_boost.checkpoint.tensors import Part, StoredTensor, build_weight_table
from llm_boost.errors import CheckpointError
from llm_boost.model_config import ModelConfig

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Canonical name -> stored names, whose rows follow one another, each with the name of its row count.
_MODEL_PARTS = {
    "model.tok_embeddings.embedding_weight": [("model.embed_tokens.weight", "vocab")],
    "model.norm_out.weight": [("model.norm.weight", "hidden")],
    "lm_head.weight": [("lm_head.weight", "vocab")],
}
_LAYER_PARTS = {
    "attention_norm.weight": [("input_layernorm.weight", "hidden")],
    "attention.w_qkv.weight": [
        ("self_attn.q_proj.weight", "q"),
        ("self_attn.k_proj.weight", "kv"),
        ("self_attn.v_proj.weight", "kv"),
    ],
    "attention.w_qkv.bias": [
        ("self_attn.q_proj.bias", "q"),
        ("self_attn.k_proj.bias", "kv"),
        ("self_attn.v_proj.bias", "kv"),
    ],
    "attention.wo.weight": [("self_attn.o_proj.weight", "hidden")],
    "attention.wo.bias": [("self_attn.o_proj.bias", "hidden")],
    "ffn_norm.weight": [("post_attention_layernorm.weight", "hidden")],
    "feed_forward.w_gate_hidden.weight": [("mlp.gate_proj.weight", "ffn"), ("mlp.up_proj.weight", "ffn")],
    "feed_forward.w2.weight": [("mlp.down_proj.weight", "hidden")],
}
# Old checkpoints store the rope frequencies, which the config already determines.
_IGNORED_SUFFIX = ".self_attn.rotary_emb.inv_freq"


def read_hugging_face(directory: Path, config: ModelConfig) -> _core.WeightTable:
    """Finds every weight of a model in the safetensors files of its directory.

    Raises:
        CheckpointError: Files are missing, damaged or unsafe, or do not hold what the config asks for.
    """
    stored = _stored_tensors(directory)
    ignored = {name for name in stored if name.endswith(_IGNORED_SUFFIX)}
    if config.tie_word_embeddings:
        ignored.add("lm_head.weight")  # some exporters store the embedding a second time
    return build_weight_table(stored, _weight_map(config), frozenset(ignored))


def _weight_map(config: ModelConfig) -> dict[str, tuple[Part, ...]]:
    rows = {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "q": config.num_heads * config.head_dim,
        "kv": config.num_kv_heads * config.head_dim,
        "ffn": config.intermediate_size,
    }
    weights: dict[str, tuple[Part, ...]] = {}
    for name, shape in _core.expected_weights(config.to_core(max_positions=1)):
        if name.startswith("model.layers."):
            _, _, layer, local = name.split(".", 3)
            parts = [(f"model.layers.{layer}.{part}", row) for part, row in _LAYER_PARTS[local]]
        else:
            parts = _MODEL_PARTS[name]
        weights[name] = tuple(Part(part, (rows[row], *shape[1:])) for part, row in parts)
    return weights


def _stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    if (directory / _SINGLE).is_file():
        return read_safetensors_header(directory / _SINGLE)
    if (directory / _INDEX).is_file():
        return _sharded_tensors(directory)
    pickles = sorted(path.name for path in directory.glob("*.bin")) + sorted(
        path.name for path in directory.glob("*.pt*")
    )
    hint = f"; {pickles[0]} is a pickle, which is never loaded: save the model as safetensors" if pickles else ""
    raise CheckpointError(f"{directory}: has neither {_SINGLE} nor {_INDEX}{hint}")


def _sharded_tensors(directory: Path) -> dict[str, StoredTensor]:
    index = directory / _INDEX
    weight_map = read_json_object(index, CheckpointError, max_bytes=64 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map' object")
    shards: dict[str, dict[str, StoredTensor]] = {}
    problems = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names the file {shard!r}, expected a .safetensors file of the same directory"
            )
        if not (directory / shard).is_file():
            problems.append(f"the shard {shard} is missing")
            continue
        shards[shard] = read_safetensors_header(directory / shard)
    if problems:
        raise CheckpointError(f"{index}: " + "; ".join(problems) + "; fetch the model again")
    tensors: dict[str, StoredTensor] = {}
    for shard, content in shards.items():
        for name, tensor in content.items():
            if weight_map.get(name) != shard:
                problems.append(f"{shard} holds '{name}', which the index puts in {weight_map.get(name, 'no file')}")
            tensors[name] = tensor
    problems += [
        f"{shard} does not hold '{name}'" for name, shard in weight_map.items() if name not in shards[str(shard)]
    ]
    if problems:
        raise CheckpointError(f"{index}: the index and the shards disagree: " + "; ".join(problems[:20]))
    return tensors
