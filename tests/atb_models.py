"""Tiny models that fit the rules of an NPU, and the variants whose lowering has a golden text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reference.tiny_models import TinySpec, write_tiny_model

from llm_boost import Model, SamplingParams, _testing
from llm_boost.model_config import ModelConfig

MODELS: Mapping[str, TinySpec] = {
    "llama_bf16": TinySpec(tie=True),
    "llama_f16": TinySpec(kv_heads=4, dtype="f16"),
    "qwen2_bf16": TinySpec(arch="qwen2", eps=1e-6, theta=1e6),
    "qwen2_f16": TinySpec(arch="qwen2", heads=8, kv_heads=2, head_dim=16, layers=3, dtype="f16", eps=1e-6),
}

# Model, and what differs from the defaults of `_testing.atb_plan`.
PLANS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama_bf16": ("llama_bf16", {"dtype": "bfloat16"}),
    "qwen2_f16": ("qwen2_f16", {}),
    "qwen2_f16_rank_1_of_2": ("qwen2_f16", {"rank": 1, "ranks": 2}),
    "llama_f16_nz": ("llama_f16", {"nz_weights": True}),
    "qwen2_f16_310p": ("qwen2_f16", {"nz_weights": True, "is_310p": True, "communication": "hccl"}),
}

# Logits of these models spread by about 3 and reach 10. The Ascend backend rounds every intermediate result to 16 bits
# where the CPU backend sums in float32: some twenty roundings a layer, of 2^-9 (bfloat16) or 2^-12 (float16) of the
# largest value, move a logit by at most about this. Where the two best are closer than that, either is a right choice.
CLEAR = {"bf16": 0.4, "f16": 0.06}


def clear_prompts(
    directory: Path, lengths: Sequence[int], max_tokens: int, start: Sequence[int] = ()
) -> tuple[list[list[int]], list[list[int]]]:
    """Random prompts whose greedy tokens are clear on the CPU backend, and these tokens.

    `start` begins each of them.
    """
    margin = CLEAR["bf16" if "bf16" in directory.name else "f16"]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=2)
    random = np.random.RandomState(1)
    prompts, tokens = [], []
    with Model.from_pretrained(directory, backend="cpu", max_model_len=400, use_tqdm=False) as model:
        for length in lengths:
            for _ in range(8):
                candidates = [[*start, *random.randint(0, 250, length - len(start)).tolist()] for _ in range(16)]
                for candidate, result in zip(candidates, model.generate(candidates, params), strict=True):
                    output = result.outputs[0]
                    steps = [
                        sorted((each.logprob for each in step.values()), reverse=True) for step in output.logprobs or ()
                    ]
                    if min(best - second for best, second, *_ in steps) > margin:
                        prompts.append(candidate)
                        tokens.append(list(output.token_ids))
                        break
                else:
                    continue
                break
    assert len(prompts) == len(lengths), "no random prompt of this length has a clear continuation"
    return prompts, tokens


def plan_text(name: str, scratch: Path) -> str:
    """What ATB is told for a variant."""
    model, options = PLANS[name]
    config = ModelConfig.from_directory(write_tiny_model(scratch / model, MODELS[model]))
    return _testing.atb_plan(config.to_core(max_positions=64), **options)
