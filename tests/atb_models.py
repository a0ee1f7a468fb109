"""Tiny models that fit the rules of an NPU, and the variants whose lowering has a golden text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference.tiny_models import TinySpec, write_tiny_model

from llm_boost import _testing
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


def plan_text(name: str, scratch: Path) -> str:
    """What ATB is told for a variant."""
    model, options = PLANS[name]
    config = ModelConfig.from_directory(write_tiny_model(scratch / model, MODELS[model]))
    return _testing.atb_plan(config.to_core(max_positions=64), **options)
