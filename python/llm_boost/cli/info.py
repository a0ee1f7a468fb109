"""``llm-boost info``: what a model is and needs, without loading it."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from llm_boost import _core
from llm_boost.checkpoint import read_checkpoint
from llm_boost.hub import resolve_model
from llm_boost.model_config import ModelConfig

SUMMARY = "show what a model is and what it needs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a model directory or checkpoint, or the name of a pulled model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--graph", action="store_true", help="print the layer graphs, one line a node")


def main(arguments: argparse.Namespace) -> int:
    """Checks that the checkpoint fits the config, and prints."""
    source = resolve_model(arguments.model)
    directory = source if source.is_dir() else source.parent
    config = ModelConfig.from_directory(directory)
    core = config.to_core(max_positions=1)
    read_checkpoint(source, config)
    if arguments.graph:
        print(_core.graph_text(core), end="")
        return 0
    facts = _facts(config, core) | {"directory": str(directory)}
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):{width}}  {value}")
    return 0


def _facts(config: ModelConfig, core: _core.ModelConfig) -> dict[str, Any]:
    parameters = sum(math.prod(shape) for _, shape in _core.expected_weights(core))
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim  # elements of keys and values, one token
    return {
        "architecture": config.architecture,
        "parameters": parameters,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "tied_embeddings": config.tie_word_embeddings,
        "eos_token_ids": list(config.eos_token_ids),
        "kv_cache_bytes_per_token_bf16": 2 * cached,
        "weight_bytes_bf16": 2 * parameters,
        "isa_levels": _core.isa_levels(),
        "threads": _core.usable_threads(),
    }
