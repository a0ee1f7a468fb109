"""The graphs of each architecture, node by node, and the builder's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_boost import ConfigError, _core
from llm_boost.model_config import ModelConfig

GOLDEN = Path(__file__).parent / "golden" / "graphs"


@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa_tied", "qwen2_tied"])
def test_graph_text(tiny_model: Callable[[str], Path], name: str) -> None:
    text = _core.graph_text(ModelConfig.from_directory(tiny_model(name)).to_core(max_positions=1))
    assert text == (GOLDEN / f"{name}.txt").read_text("utf-8")


def config(**changes: object) -> _core.ModelConfig:
    core = _core.ModelConfig()
    values = {
        "architecture": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "vocab_size": 50,
        "max_positions": 8,
        "rms_norm_eps": 1e-5,
        "rope_inv_freq": [1.0] * 8,
        **changes,
    }
    for name, value in values.items():
        setattr(core, name, value)
    return core


def test_weights_have_their_canonical_names() -> None:
    names = [name for name, _ in _core.expected_weights(config(qkv_bias=True, output_bias=True))]
    assert names == [
        "model.tok_embeddings.embedding_weight",
        "model.layers.0.attention_norm.weight",
        "model.layers.0.attention.w_qkv.weight",
        "model.layers.0.attention.w_qkv.bias",
        "model.layers.0.attention.wo.weight",
        "model.layers.0.attention.wo.bias",
        "model.layers.0.ffn_norm.weight",
        "model.layers.0.feed_forward.w_gate_hidden.weight",
        "model.layers.0.feed_forward.w2.weight",
        "model.norm_out.weight",
        "lm_head.weight",
    ]
    tied = [name for name, _ in _core.expected_weights(config(tie_word_embeddings=True))]
    assert "lm_head.weight" not in tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt"}, "architecture is 'gpt', which is not supported"),
        ({"hidden_size": 0}, "hidden_size is 0, expected 1 to 1048576"),
        ({"hidden_size": 33}, "hidden_size is 33, expected an even number"),
        ({"intermediate_size": 63}, "intermediate_size is 63, expected an even number"),
        ({"num_heads": 3, "num_kv_heads": 2}, "num_heads is 3, which is not a multiple of num_kv_heads 2"),
        ({"head_dim": 2048}, "head_dim is 2048, expected 1 to 1024"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_inv_freq": [1.0] * 7}, "rope has 7 frequencies, expected head_dim / 2 = 8"),
        ({"rope_inv_freq": [float("inf")] * 8}, "rope settings are not finite"),
        ({"max_positions": 1 << 30}, "max_positions is 1073741824"),
    ],
)
def test_configs_that_cannot_be_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _core.graph_text(config(**changes))
