"""Makes rope.json with transformers, which shares no code with this project.

Run by hand, from the repository root, with an interpreter that has torch and transformers; it takes seconds:

    PYTHONPATH=tests python tests/golden/make_rope_goldens.py

frequencies: what transformers computes for a config: inverse frequencies and the factor of cosine and sine.
logits: of the tiny model `llama_mha`, whose config.json is changed as given, all positions of one prompt longer than
the context that the config says the model was trained for.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference.tiny_models import TINY_SPECS, write_tiny_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}

# Name -> head_dim, theta, max_position_embeddings, rope parameters, longest sequence.
FREQUENCIES: dict[str, tuple[int, float, int, dict[str, Any], int]] = {
    "linear": (64, 1e4, 2048, {"rope_type": "linear", "factor": 2.5}, 4096),
    "dynamic": (64, 1e4, 2048, {"rope_type": "dynamic", "factor": 2.0}, 4096),
    "dynamic, odd length": (128, 1e6, 4096, {"rope_type": "dynamic", "factor": 3.0}, 9001),
    "dynamic within the trained length": (64, 1e4, 2048, {"rope_type": "dynamic", "factor": 2.0}, 512),
    "llama 3.1": (128, 5e5, 131072, {**LLAMA3, ORIGINAL: 8192}, 131072),
    "llama 3.2": (64, 5e5, 131072, {**LLAMA3, "factor": 32.0, ORIGINAL: 8192}, 131072),
    "llama3 without original": (64, 1e4, 4096, dict(LLAMA3), 4096),
    "qwen2 yarn": (128, 1e6, 32768, {**YARN, ORIGINAL: 32768}, 131072),
    "yarn betas": (64, 1e4, 8192, {**YARN, ORIGINAL: 2048, "beta_fast": 16, "beta_slow": 2}, 8192),
    "yarn mscale": (64, 1e4, 16384, {**YARN, ORIGINAL: 4096, "mscale": 0.7, "mscale_all_dim": 1.3}, 16384),
    "yarn attention_factor": (64, 1e4, 8192, {**YARN, ORIGINAL: 2048, "attention_factor": 1.5}, 8192),
    "yarn not truncated": (64, 15e4, 131072, {**YARN, "factor": 32.0, ORIGINAL: 4096, "truncate": False}, 4096),
    "yarn without original": (32, 1e4, 2048, dict(YARN), 8192),
}  # fmt: skip

NUM_TOKENS = 48
LOGITS: dict[str, dict[str, Any]] = {
    "default": {"max_position_embeddings": 64},
    "linear": {"max_position_embeddings": 32, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"max_position_embeddings": 32, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "yarn": {"max_position_embeddings": 64, "rope_parameters": {**YARN, "rope_theta": 500.0, ORIGINAL: 16}},
    "llama3": {"max_position_embeddings": 64, "rope_scaling": {**LLAMA3, ORIGINAL: 16}},
}  # fmt: skip


def frequencies(
    head_dim: int, theta: float, max_position: int, parameters: dict[str, Any], length: int
) -> dict[str, Any]:
    """The case and what transformers makes of it."""
    config = transformers.LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None, seq_len=length)
    return {
        "head_dim": head_dim,
        "theta": theta,
        "max_position_embeddings": max_position,
        "parameters": parameters,
        "length": length,
        "inv_freq": [float(f"{value:.9g}") for value in inv_freq],  # all the digits of a float32
        "amplitude": float(factor),
    }


def logits(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes of config.json, the prompt, and every eighth logit of every fourth position."""
    spec = TINY_SPECS["llama_mha"]
    token_ids = np.random.RandomState(1).randint(0, spec.vocab, NUM_TOKENS).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        directory = write_tiny_model(Path(temporary), spec)
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        rows = model(torch.tensor([token_ids])).logits[0, 3::4, ::8]
    return {
        "changes": changes,
        "token_ids": token_ids,
        "logits": [[float(f"{value:.7g}") for value in row] for row in rows],
    }


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    goldens = {
        "transformers": transformers.__version__,
        "frequencies": {name: frequencies(*case) for name, case in FREQUENCIES.items()},
        "logits": {name: logits(changes) for name, changes in LOGITS.items()},
    }
    Path(__file__).with_name("rope.json").write_text(json.dumps(goldens) + "\n", encoding="utf-8")
