"""What MindFormers does around a boost: parameters, config, block tables, and its generation loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reference.tiny_models import TinySpec
from safetensors.numpy import load_file

from llm_boost.integrations.mindspore import LlmBoostConfig, LlmBoostRegister

BLOCK_SIZE, NUM_BLOCKS, SEQ_LENGTH, PAD = 16, 48, 96, 0
PROMPTS = [[5, 9, 250, 31, 7], [17] * 40, [200, 3], list(range(60, 93))]

# Hugging Face's names -> MindFormers'.
RENAMES = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.": "model.norm_out.",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
}


def parameters_of(directory: Path) -> dict[str, Any]:
    """A checkpoint's parameters as MindFormers loads them."""
    parameters = {}
    for name, value in load_file(directory / "model.safetensors").items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        parameters[name] = value
    return parameters


def fused(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same with q, k, v and gate, up joined."""
    result = dict(parameters)
    for name in parameters:
        for first, others, whole in [
            ("attention.wq", ["attention.wk", "attention.wv"], "attention.w_qkv"),
            ("feed_forward.w1", ["feed_forward.w3"], "feed_forward.w_gate_hidden"),
        ]:
            if first in name:
                parts = [name, *(name.replace(first, other) for other in others)]
                result[name.replace(first, whole)] = np.concatenate([result.pop(part) for part in parts])
    return result


def config_of(spec: TinySpec, **changes: Any) -> LlmBoostConfig:
    values: dict[str, Any] = {
        "llm_backend": "CPU",
        "boost_model_name": {"llama": "Llama", "qwen2": "Qwen"}[spec.arch],
        "seq_length": SEQ_LENGTH,
        "hidden_size": spec.hidden,
        "num_layers": spec.layers,
        "num_heads": spec.heads,
        "n_kv_heads": spec.kv_heads,
        "rms_norm_eps": spec.eps,
        "theta": spec.theta,
        "compute_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[spec.dtype],
        "rotary_dtype": "float32",
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "is_dynamic": True,
        "eos_token_id": spec.end_of_text,
        "pad_token_id": PAD,
        "do_sample": False,
    }
    return LlmBoostConfig(**{**values, **changes})


class BlockManager:
    """Gives out blocks first in, first out, as MindFormers does, and pads tables with -1."""

    def __init__(self, batch_size: int) -> None:
        self.free = list(range(NUM_BLOCKS))
        self.blocks: list[list[int]] = [[] for _ in range(batch_size)]

    def tables(self) -> Any:
        width = SEQ_LENGTH // BLOCK_SIZE
        return np.array([row + [-1] * (width - len(row)) for row in self.blocks], np.int32)

    def prompts(self, valid: Any, max_length: int) -> tuple[Any, Any]:
        slots = np.full((len(valid), max_length), -1, np.int32)
        for row, length in enumerate(valid):
            self.blocks[row] = [self.free.pop(0) for _ in range(-(-int(length) // BLOCK_SIZE))]
            positions = np.arange(length)
            slots[row, :length] = (
                np.array(self.blocks[row])[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
            )
        return self.tables(), slots.reshape(-1)

    def tokens(self, valid: Any, ended: list[bool]) -> tuple[Any, Any]:
        slots = []
        for row, length in enumerate(valid):
            blocks, position = self.blocks[row], int(length) - 1
            if not ended[row] and position // BLOCK_SIZE >= len(blocks):
                blocks.append(self.free.pop(0))
            # Of a sequence that has ended, the block may not be there; its last one then stands for it.
            slots.append(blocks[min(position // BLOCK_SIZE, len(blocks) - 1)] * BLOCK_SIZE + position % BLOCK_SIZE)
        return self.tables(), np.array(slots, np.int32)


def drive(
    network: Any, prompts: list[list[int]], max_length: int, eos: int, wrap: Callable[[Any], Any]
) -> list[list[int]]:
    """Completes prompts as MindFormers' generation loop does: greedy, all prompts first, then a token each."""
    valid = np.array([len(prompt) for prompt in prompts], np.int32)
    origin = np.full((len(prompts), valid.max()), PAD, np.int32)
    for row, prompt in enumerate(prompts):
        origin[row, : len(prompt)] = prompt
    input_ids = np.pad(origin, ((0, 0), (0, SEQ_LENGTH - origin.shape[1])), constant_values=PAD)
    manager, ended, prefill = BlockManager(len(prompts)), [False] * len(prompts), True
    while not all(ended):
        network.add_flags_recursive(is_first_iteration=prefill)
        if prefill:
            tables, slots = manager.prompts(valid, origin.shape[1] if network.config.is_dynamic else SEQ_LENGTH)
        else:
            tables, slots = manager.tokens(valid, ended)
        inputs = network.prepare_inputs_for_generation(
            input_ids if prefill else input_ids[np.arange(len(valid)), valid - 1][:, None],
            valid_length_each_example=valid,
            block_tables=wrap(tables),
            slot_mapping=wrap(slots),
            prefill=prefill,
            origin_inputs=origin,
            use_past=True,
        )
        inputs["llm_boost_inputs"]["input_ids"] = wrap(inputs["llm_boost_inputs"]["input_ids"])
        logits = network(**inputs)
        logits = logits.asnumpy() if hasattr(logits, "asnumpy") else logits
        assert logits.shape[0] == len(prompts)
        assert logits.dtype == np.float32
        for row, token in enumerate(logits.argmax(-1)):
            if ended[row]:
                continue
            input_ids[row, valid[row]] = token
            valid[row] += 1
            ended[row] = bool(token == eos or valid[row] == max_length)
        prefill = False
    return [input_ids[row, : valid[row]].tolist() for row in range(len(prompts))]


def new_boost(spec: TinySpec, parameters: Mapping[str, Any], **changes: Any) -> Any:
    config = config_of(spec, **changes)
    boost = LlmBoostRegister.get_instance(config.llm_backend, config.boost_model_name, config=config)
    boost.init()
    boost.set_weights(parameters)
    boost.set_kvcache()
    boost.add_flags(is_first_iteration=True)
    return boost


def prompt_step(*prompts: list[int], **changes: Any) -> dict[str, Any]:
    """The inputs of a step of prompts."""
    valid = np.array([len(prompt) for prompt in prompts], np.int32)
    tables, slots = BlockManager(len(prompts)).prompts(valid, int(valid.max()))
    inputs: dict[str, Any] = {
        "input_ids": np.concatenate(prompts),
        "position_ids": np.concatenate([np.arange(length) for length in valid]),
        "cos_embed": None,
        "sin_embed": None,
        "block_tables": tables,
        "slot_mapping": slots[slots >= 0],
        "batch_valid_length": valid,
        "seq_lens": valid.tolist(),
        "lm_head_indices": np.cumsum(valid) - 1,
    }
    return {**inputs, **changes}
