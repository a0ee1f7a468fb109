"""The oracles: the decoder agrees with transformers, and its tolerance tells rounding from a bug."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.numpy_decoder import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Arithmetic,
    Array,
    DecoderConfig,
    KvCache,
    NumpyDecoder,
    Precision,
    read_weights,
    weights_digest,
)
from reference.tiny_models import END_OF_TEXT, TINY_SPECS, TinySpec, write_tiny_model
from safetensors.numpy import load_file
from tokenizers import Tokenizer

GOLDEN_FILE = Path(__file__).with_name("golden") / "tiny_logits.json"
GOLDENS = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))["records"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: write_tiny_model(root / name, spec) for name, spec in TINY_SPECS.items()}


@pytest.fixture(scope="module")
def decoders(directories: Mapping[str, Path]) -> dict[str, NumpyDecoder]:
    return {name: NumpyDecoder.from_directory(directory) for name, directory in directories.items()}


def some_tokens(decoder: NumpyDecoder, count: int = 24, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, decoder.config.vocab, count).tolist()
    return tokens


# --- against transformers ---


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: str(golden["name"]))
def test_agrees_with_transformers(decoders: Mapping[str, NumpyDecoder], golden: dict[str, Any]) -> None:
    decoder = decoders[golden["name"]]
    assert weights_digest(decoder.weights) == golden["weights_sha256"], "made for other weights: make it anew"
    logits = decoder.logits(golden["token_ids"])[np.ix_(golden["rows"], golden["columns"])]
    tolerance = decoder.tolerance(golden["token_ids"], FLOAT32)[golden["rows"]]
    assert np.all(np.abs(logits - golden["logits"]) <= tolerance[:, None])


# --- the tolerance, from both sides ---


class RoundedArithmetic(Arithmetic):
    """What an implementation does that stores `dtype` and adds in float32."""

    def __init__(self, dtype: type) -> None:
        self.dtype = dtype

    def store(self, x: Array) -> Array:
        return x.astype(self.dtype).astype(np.float64)

    def matmul(self, a: Array, b: Array) -> Array:
        product: Array = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float64)
        return product


@pytest.mark.parametrize("name", TINY_SPECS)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(FLOAT32, np.float32), (BFLOAT16, ml_dtypes.bfloat16), (FLOAT16, np.float16)],
    ids=["float32", "bfloat16", "float16"],
)
def test_rounding_stays_within_the_tolerance(
    decoders: Mapping[str, NumpyDecoder], name: str, precision: Precision, dtype: type
) -> None:
    decoder = decoders[name]
    tokens = some_tokens(decoder)
    rounded = replace(decoder, arithmetic=RoundedArithmetic(dtype)).logits(tokens)
    error = np.abs(rounded - decoder.logits(tokens)).max(axis=1)
    ratio = float((error / decoder.tolerance(tokens, precision)).max())
    assert 0.03 < ratio < 1  # below: the tolerance would be needlessly loose


def test_tolerance_holds_at_far_positions(decoders: Mapping[str, NumpyDecoder]) -> None:
    decoder = decoders["llama_mha"]
    tokens = some_tokens(decoder, count=400)
    rounded = replace(decoder, arithmetic=RoundedArithmetic(np.float32)).logits(tokens)
    error = np.abs(rounded - decoder.logits(tokens)).max(axis=1)
    assert np.all(error <= decoder.tolerance(tokens, FLOAT32, samples=2))


def test_tolerance_depends_on_the_seed_alone(decoders: Mapping[str, NumpyDecoder]) -> None:
    decoder = decoders["qwen2_tied"]
    tokens = some_tokens(decoder)
    first, again, other = (decoder.tolerance(tokens, FLOAT32, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


Bug = Callable[[NumpyDecoder], NumpyDecoder]


def reweighted(decoder: NumpyDecoder, part: str, change: Callable[[Array], Array]) -> NumpyDecoder:
    """A decoder that acts as if the weights whose name contains `part` were others."""
    chosen = {name: change(weight) for name, weight in decoder.weights.items() if part in name}
    assert chosen
    return replace(decoder, weights={**decoder.weights, **chosen})


def with_heads(decoder: NumpyDecoder, weight: Array) -> Array:
    split: Array = weight.reshape(-1, decoder.config.head_dim, weight.shape[-1])
    return split


def heads_dealt_in_turn(decoder: NumpyDecoder) -> NumpyDecoder:
    """Query head h reads key-value head h % K, not h // (H / K): it permutes the query heads."""
    order = np.arange(decoder.config.heads).reshape(decoder.config.kv_heads, -1).T.ravel()

    def permuted(weight: Array) -> Array:
        moved: Array = with_heads(decoder, weight)[order]
        return moved.reshape(weight.shape)

    decoder = reweighted(decoder, "q_proj", permuted)
    return reweighted(decoder, "o_proj", lambda weight: permuted(weight.T).T)


def neighbours_rotated(decoder: NumpyDecoder) -> NumpyDecoder:
    """Element 2 j turns with 2 j + 1, not j with j + D / 2."""
    order = np.arange(decoder.config.head_dim).reshape(2, -1).T.ravel()

    def permuted(weight: Array) -> Array:
        return with_heads(decoder, weight)[:, order].reshape(weight.shape)

    return reweighted(reweighted(decoder, "q_proj", permuted), "k_proj", permuted)


def gate_and_up_swapped(decoder: NumpyDecoder) -> NumpyDecoder:
    swapped = {
        name.replace(a, b): weight
        for name, weight in decoder.weights.items()
        for a, b in (("gate_proj", "up_proj"), ("up_proj", "gate_proj"))
        if a in name
    }
    return replace(decoder, weights={**decoder.weights, **swapped})


def embedding_as_head(decoder: NumpyDecoder) -> NumpyDecoder:
    return reweighted(decoder, "lm_head", lambda _: decoder.weights["model.embed_tokens.weight"])


def scores_not_scaled(decoder: NumpyDecoder) -> NumpyDecoder:
    return reweighted(decoder, "q_proj", lambda weight: weight * decoder.config.head_dim**0.5)


def scores_scaled_by_hidden_over_heads(decoder: NumpyDecoder) -> NumpyDecoder:
    config = decoder.config
    factor = (config.head_dim * config.heads / config.hidden) ** 0.5
    return reweighted(decoder, "q_proj", lambda weight: weight * factor)


def last_ffn_element_dropped(decoder: NumpyDecoder) -> NumpyDecoder:
    kept = np.arange(decoder.config.ffn) < decoder.config.ffn - 1
    return reweighted(decoder, "layers.1.mlp.down_proj", lambda weight: weight * kept)


BUGS: dict[str, tuple[str, Bug]] = {
    "heads dealt in turn": ("llama_gqa_tied", heads_dealt_in_turn),
    "heads dealt in turn, wide model": ("llama_hidden_576", heads_dealt_in_turn),
    "neighbours rotated": ("llama_head_128", neighbours_rotated),
    "no scale": ("llama_head_128", scores_not_scaled),
    "scale of hidden over heads": ("llama_wide_heads", scores_scaled_by_hidden_over_heads),
    "no query bias": ("qwen2_tied", lambda d: reweighted(d, "q_proj.bias", np.zeros_like)),
    "no key bias": ("qwen2_tied", lambda d: reweighted(d, "k_proj.bias", np.zeros_like)),
    "no value bias": ("qwen2_tied", lambda d: reweighted(d, "v_proj.bias", np.zeros_like)),
    "gate and up swapped": ("llama_f16", gate_and_up_swapped),
    "norm weight ignored": ("llama_mha", lambda d: reweighted(d, "input_layernorm", np.ones_like)),
    "embedding as head": ("llama_mha", embedding_as_head),
}
# These drown in bfloat16's rounding: tests in float32 must find them.
SUBTLE_BUGS: dict[str, tuple[str, Bug]] = {
    "last ffn element dropped": ("llama_f16", last_ffn_element_dropped),
    "another theta": ("llama_mha", lambda d: replace(d, config=replace(d.config, theta=11000.0))),
    "another epsilon": ("llama_mha", lambda d: replace(d, config=replace(d.config, eps=1e-6))),
    "no epsilon": ("qwen2_tied", lambda d: replace(d, config=replace(d.config, eps=0.0))),
}


def deviation(decoder: NumpyDecoder, bug: Bug, precision: Precision) -> float:
    """By how many tolerances a bug moves the logits."""
    tokens = some_tokens(decoder)
    moved = np.abs(bug(decoder).logits(tokens) - decoder.logits(tokens)).max(axis=1)
    return float((moved / decoder.tolerance(tokens, precision)).max())


@pytest.mark.parametrize(("name", "bug"), BUGS.values(), ids=BUGS)
def test_bugs_exceed_the_tolerance(decoders: Mapping[str, NumpyDecoder], name: str, bug: Bug) -> None:
    assert deviation(decoders[name], bug, FLOAT32) > 10_000
    assert deviation(decoders[name], bug, BFLOAT16) > 2


@pytest.mark.parametrize(("name", "bug"), SUBTLE_BUGS.values(), ids=SUBTLE_BUGS)
def test_subtle_bugs_exceed_that_of_float32(decoders: Mapping[str, NumpyDecoder], name: str, bug: Bug) -> None:
    assert deviation(decoders[name], bug, FLOAT32) > 10


# --- the decoder ---


@settings(deadline=None, max_examples=20)
@given(cuts=st.sets(st.integers(1, 23), max_size=5))
def test_the_cache_changes_nothing(decoders: Mapping[str, NumpyDecoder], cuts: set[int]) -> None:
    decoder = decoders["llama_gqa_tied"]
    tokens = some_tokens(decoder, count=24)
    bounds = [0, *sorted(cuts), 24]
    cache: KvCache = {}
    chunks = [decoder.logits(tokens[begin:end], cache) for begin, end in pairwise(bounds)]
    np.testing.assert_allclose(np.concatenate(chunks), decoder.logits(tokens), rtol=0, atol=1e-12)


def test_rotary_angles_are_float32_products(decoders: Mapping[str, NumpyDecoder]) -> None:
    decoder = decoders["llama_head_128"]
    cos, _ = decoder.rope(np.array([5001]))
    frequency = np.float32(1) / np.float32(10000.0) ** np.float32(2 / 128)
    assert cos[0, 1] == np.cos(np.float64(np.float32(5001) * frequency))
    assert cos[0, 1] != np.cos(5001 * np.float64(frequency))


def test_later_tokens_do_not_matter(decoders: Mapping[str, NumpyDecoder]) -> None:
    decoder = decoders["qwen2_tied"]
    tokens = some_tokens(decoder)
    np.testing.assert_allclose(decoder.logits(tokens)[:7], decoder.logits(tokens[:7]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TINY_SPECS)
def test_greedy_is_the_argmax_and_certain_in_float32(decoders: Mapping[str, NumpyDecoder], name: str) -> None:
    decoder = decoders[name]
    prompt = some_tokens(decoder, count=5)
    tokens, margins = decoder.greedy(prompt, 16)
    sequence = prompt + tokens[:-1]
    rows = decoder.logits(sequence)[4:]  # [16, V]
    ordered = np.sort(rows, axis=1)
    assert tokens == rows.argmax(axis=1).tolist()
    np.testing.assert_allclose(margins, ordered[:, -1] - ordered[:, -2], rtol=0, atol=1e-12)
    assert np.all(margins > 2 * decoder.tolerance(sequence, FLOAT32)[4:])
    assert len(set(tokens)) > 3  # else it would hardly test anything


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["MistralForCausalLM"]},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0}},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"use_sliding_window": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_configs_beyond_the_decoder_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        DecoderConfig.from_hugging_face({**TinySpec().config(), **change})


def test_theta_is_found_where_transformers_5_writes_it() -> None:
    config = TinySpec(theta=123.0).config()
    old = DecoderConfig.from_hugging_face(config)
    theta = config.pop("rope_theta")
    assert DecoderConfig.from_hugging_face({**config, "rope_parameters": {"rope_theta": theta}}) == old


def test_weights_must_be_those_of_the_config(decoders: Mapping[str, NumpyDecoder]) -> None:
    decoder = decoders["qwen2_tied"]
    bias = "model.layers.0.self_attn.k_proj.bias"
    others = {name: weight for name, weight in decoder.weights.items() if name != bias}
    with pytest.raises(ValueError, match=re.escape(bias)):
        replace(decoder, weights=others)


@pytest.mark.parametrize("tokens", [[], [-1], [257]])
def test_token_ids_must_be_in_the_vocabulary(decoders: Mapping[str, NumpyDecoder], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token_ids"):
        decoders["llama_mha"].logits(tokens)


# --- the tiny models ---


def test_a_model_depends_on_spec_and_seed_alone(directories: Mapping[str, Path], tmp_path: Path) -> None:
    again = write_tiny_model(tmp_path / "again", TINY_SPECS["llama_sharded"])
    other = write_tiny_model(tmp_path / "other", TINY_SPECS["llama_sharded"], seed=1)
    for path in directories["llama_sharded"].iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert weights_digest(read_weights(again)) != weights_digest(read_weights(other))


def test_shards_add_up(directories: Mapping[str, Path]) -> None:
    directory = directories["qwen2_sharded_f32"]
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shards = {path.name: load_file(path) for path in directory.glob("*.safetensors")}
    assert len(shards) == 2
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    read = read_weights(directory)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], tensors[name]) for name in read)


@pytest.mark.parametrize("name", TINY_SPECS)
def test_logits_are_well_spread(decoders: Mapping[str, NumpyDecoder], name: str) -> None:
    assert 2.5 < decoders[name].logits(some_tokens(decoders[name])).std() < 3.5


def test_the_tokenizer_has_a_token_for_every_byte(directories: Mapping[str, Path]) -> None:
    tokenizer = Tokenizer.from_file(str(directories["llama_mha"] / "tokenizer.json"))
    text = "Hé!\n 世界 🙂"
    token_ids = tokenizer.encode(text + END_OF_TEXT).ids
    assert len(token_ids) == len(text.encode()) + 1
    assert max(token_ids) == token_ids[-1] == TINY_SPECS["llama_mha"].end_of_text
    assert tokenizer.decode(token_ids) == text
    assert not (directories["llama_wide_heads"] / "tokenizer.json").exists()
