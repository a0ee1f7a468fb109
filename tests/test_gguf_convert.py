"""The conversion of GGUF files: weights bit for bit, config, targets, and hostile files."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import (
    Sizes,
    bf16_bits,
    byte_vocabulary,
    convert,
    gguf_tensors,
    hf_weights,
    model_metadata,
    permute,
    read_bf16,
    read_json,
    write_gguf,
    write_model,
)
from safetensors import safe_open

from llm_boost.errors import CheckpointError
from llm_boost.gguf_convert import convert_gguf, weights
from llm_boost.gguf_convert.config import llama3_factors
from llm_boost.gguf_convert.reader import GgufFile

SIZES = Sizes()
WIDE = Sizes(hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, layers=1)  # blocks take up to 256 elements


def dequantisable() -> list[GGMLQuantizationType]:
    types = []
    for kind, (_, block_bytes) in GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        types.append(kind)
    return types


def assert_weights_equal(directory: Path, expected: dict[str, np.ndarray]) -> None:
    found = read_bf16(directory / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], bf16_bits(values), err_msg=name)


class TestWeights:
    @pytest.mark.parametrize("tie", [False, True])
    @pytest.mark.parametrize(("arch", "bias"), [("llama", False), ("llama", True), ("qwen2", True)])
    def test_every_tensor_bit_for_bit(self, tmp_path: Path, arch: str, bias: bool, tie: bool) -> None:
        expected = hf_weights(arch, SIZES, tie=tie, bias=bias)
        metadata = model_metadata(arch, SIZES) | byte_vocabulary()
        directory = convert(tmp_path, metadata, gguf_tensors(arch, SIZES, expected), arch)
        assert_weights_equal(directory, expected)
        config = read_json(directory, "config")
        assert config["tie_word_embeddings"] is tie
        assert config.get("attention_bias", True) is bias

    def test_head_size_apart_from_the_hidden_size(self, tmp_path: Path) -> None:
        sizes = Sizes(heads=3, kv_heads=1, head_dim=20)
        expected = hf_weights("llama", sizes)
        metadata = model_metadata("llama", sizes) | byte_vocabulary() | {"llama.attention.key_length": 20}
        directory = convert(tmp_path, metadata, gguf_tensors("llama", sizes, expected))
        assert_weights_equal(directory, expected)
        assert read_json(directory, "config")["head_dim"] == 20

    @pytest.mark.parametrize("kind", dequantisable(), ids=lambda kind: kind.name)
    def test_every_type(self, tmp_path: Path, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "_CHUNK_ELEMENTS", 7 * 256)  # rows by sevens, so that chunks end anywhere
        rng = np.random.default_rng(0)
        expected = hf_weights("llama", WIDE, tie=True)
        tensors: dict[str, Any] = gguf_tensors("llama", WIDE, expected)
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        for name, values in tensors.items():
            if values.ndim == 2:
                # Any bytes are a tensor; below 0x3C none of their float16 scales is infinite or NaN.
                shape = (values.shape[0], values.shape[1] // block_size * block_bytes)
                tensors[name] = (rng.integers(0, 0x3C, shape, np.uint8), kind)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, WIDE.layers)
        for name in expected:
            tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
            if isinstance(tensor, tuple):
                values = gguf.dequantize(*tensor)
                heads = {"q_proj": WIDE.heads, "k_proj": WIDE.kv_heads}.get(name.split(".")[-2])
                expected[name] = values[np.argsort(permute(np.arange(len(values)), heads))] if heads else values
        directory = convert(tmp_path, model_metadata("llama", WIDE) | byte_vocabulary(), tensors)
        assert_weights_equal(directory, expected)

    @pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16])
    def test_quantised_by_the_library(self, tmp_path: Path, kind: GGMLQuantizationType) -> None:
        expected = hf_weights("qwen2", WIDE)
        tensors: dict[str, Any] = gguf_tensors("qwen2", WIDE, expected)
        for name, values in tensors.items():
            if values.ndim == 2:
                tensors[name] = (gguf.quantize(values, kind), kind)
        for name, values in expected.items():
            if values.ndim == 2:
                expected[name] = gguf.dequantize(gguf.quantize(values, kind), kind)
        directory = convert(tmp_path, model_metadata("qwen2", WIDE) | byte_vocabulary(), tensors, "qwen2")
        assert_weights_equal(directory, expected)

    def test_halves_round_to_even(self, tmp_path: Path) -> None:
        expected = hf_weights("llama", SIZES, tie=True)
        bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
        expected["model.norm.weight"][:5] = bits.view(np.float32)
        metadata = model_metadata("llama", SIZES) | byte_vocabulary()
        found = read_bf16(convert(tmp_path, metadata, gguf_tensors("llama", SIZES, expected)) / "model.safetensors")
        assert found["model.norm.weight"][:5].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82]

    def test_the_library_reads_the_file(self, tmp_path: Path) -> None:
        directory = convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "m", progress=False)
        with safe_open(directory / "model.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt"}
            assert file.get_slice("model.embed_tokens.weight").get_shape() == [SIZES.vocab, SIZES.hidden]

    @pytest.mark.parametrize("vocab", [261, 1000])  # headers of different lengths
    def test_tensors_are_aligned(self, tmp_path: Path, vocab: int) -> None:
        source = write_model(tmp_path / "m.gguf", "llama", Sizes(vocab=vocab))
        directory = convert_gguf(source, tmp_path / "m", progress=False)
        header_bytes = int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")
        assert header_bytes % 8 == 0

    def test_dequantises_in_chunks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []

        def record(*args: Any) -> np.ndarray:
            values = dequantise(*args)
            sizes.append(values.size)
            return values

        dequantise = GgufFile.dequantise
        monkeypatch.setattr(weights, "_CHUNK_ELEMENTS", 1000)
        monkeypatch.setattr(GgufFile, "dequantise", record)
        convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "m", progress=False)
        assert max(sizes) <= 1000

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.4e38])
    def test_elements_that_are_no_bfloat16(self, tmp_path: Path, value: float) -> None:
        expected = hf_weights("llama", SIZES, tie=True)
        expected["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        metadata = model_metadata("llama", SIZES) | byte_vocabulary()
        with pytest.raises(CheckpointError, match=r"'blk.1.ffn_up.weight' has NaN or infinite"):
            convert(tmp_path, metadata, gguf_tensors("llama", SIZES, expected))
        assert os.listdir(tmp_path) == ["model.gguf"]


class TestConfig:
    def test_llama(self, tmp_path: Path) -> None:
        directory = convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "m", progress=False)
        assert read_json(directory, "config") == {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 261,
            "max_position_embeddings": 128,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 257,
            "eos_token_id": 258,
            "pad_token_id": 259,
        }

    def test_qwen2(self, tmp_path: Path) -> None:
        directory = convert_gguf(write_model(tmp_path / "m.gguf", "qwen2"), tmp_path / "m", progress=False)
        config = read_json(directory, "config")
        assert (config["architectures"], config["model_type"]) == (["Qwen2ForCausalLM"], "qwen2")
        assert config["use_sliding_window"] is False

    def test_defaults_of_the_format(self, tmp_path: Path) -> None:
        changes = {"llama.rope.freq_base": None, "llama.attention.head_count_kv": None}
        source = write_model(tmp_path / "m.gguf", "llama", Sizes(kv_heads=4), **changes)
        config = read_json(convert_gguf(source, tmp_path / "m", progress=False), "config")
        assert (config["rope_theta"], config["num_key_value_heads"]) == (10000.0, 4)

    def test_generation_ends_at_every_end_of_turn(self, tmp_path: Path) -> None:
        changes = {"tokenizer.ggml.eot_token_id": 260, "tokenizer.ggml.eom_token_id": 258}
        directory = convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)
        assert read_json(directory, "generation_config")["eos_token_id"] == [258, 260]
        assert read_json(directory, "config")["eos_token_id"] == 258

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"type": "none"}, None),
            ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
            (
                {"type": "yarn", "factor": 4.0, "original_context_length": 32, "yarn_beta_fast": 16.0},
                {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "beta_fast": 16.0,
                },
            ),
        ],
    )
    def test_rope_scaling(self, tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
        changes = {f"llama.rope.scaling.{key}": value for key, value in changes.items()}
        directory = convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)
        assert read_json(directory, "config")["rope_scaling"] == expected

    @staticmethod
    def converter_factors(head_dim: int, theta: float, factor: float, low: float, original: int) -> np.ndarray:
        """Llama 3's factors as llama.cpp's converter computes them, in float32."""
        factors = []
        for index in range(0, head_dim, 2):
            frequency = np.float32(1) / np.float32(theta) ** np.float32(index / head_dim)
            wavelen = 2 * math.pi / float(frequency)
            if wavelen < original / 4.0:
                factors.append(1.0)
            elif wavelen > original / low:
                factors.append(factor)
            else:
                smooth = (original / wavelen - low) / (4.0 - low)
                factors.append(1 / ((1 - smooth) / factor + smooth))
        return np.array(factors, np.float32)

    @pytest.mark.parametrize(("head_dim", "theta", "factor"), [(128, 500000.0, 8.0), (64, 500000.0, 32.0)])
    def test_llama3_rope_scaling(self, tmp_path: Path, head_dim: int, theta: float, factor: float) -> None:
        sizes = Sizes(heads=1, kv_heads=1, head_dim=head_dim, layers=1)
        metadata = model_metadata("llama", sizes) | byte_vocabulary()
        metadata |= {"llama.attention.key_length": head_dim, "llama.rope.freq_base": theta}
        expected = hf_weights("llama", sizes)
        tensors = gguf_tensors("llama", sizes, expected)
        factors = self.converter_factors(head_dim, theta, factor, 1.0, 8192)
        assert 1 < np.sort(np.unique(factors))[1] < factor  # the smooth passage is part of the test
        directory = convert(tmp_path, metadata, tensors | {"rope_freqs.weight": factors})
        assert read_json(directory, "config")["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        assert_weights_equal(directory, expected)

        for other in (
            self.converter_factors(head_dim, theta, factor, 1.0, 4096),
            self.converter_factors(head_dim, theta, factor, 2.0, 8192),
            factors * np.linspace(1, 1.001, factors.size, dtype=np.float32),
            factors[:-1],
            factors * np.float32(np.nan),
            factors * 0,
        ):
            source = write_gguf(tmp_path / "other.gguf", "llama", metadata, tensors | {"rope_freqs.weight": other})
            with pytest.raises(CheckpointError, match=r"rope_freqs\.weight.*Llama 3"):
                convert_gguf(source, tmp_path / "other", progress=False)

    def test_llama3_factors_far_from_the_passage(self) -> None:
        parameters = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        factors = llama3_factors(64, 500000.0, **parameters, original_max_position_embeddings=8192)
        assert factors[0] == 1.0
        assert factors[-1] == 8.0


class TestTarget:
    def test_an_existing_target_is_kept(self, tmp_path: Path) -> None:
        source, target = write_model(tmp_path / "m.gguf"), tmp_path / "m"
        target.mkdir()
        (target / "mine").touch()
        with pytest.raises(CheckpointError, match="exists already"):
            convert_gguf(source, target, progress=False)
        with pytest.raises(CheckpointError, match="is not what a conversion made"):
            convert_gguf(source, target, force=True, progress=False)
        assert sorted(os.listdir(tmp_path)) == ["m", "m.gguf"]
        assert os.listdir(target) == ["mine"]

    @pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("m")])
    def test_force_replaces_no_other_thing(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        source = write_model(tmp_path / "m.gguf")
        convert_gguf(source, tmp_path / "m", progress=False)
        make(tmp_path / "other")
        with pytest.raises(CheckpointError, match="is not what a conversion made"):
            convert_gguf(source, tmp_path / "other", force=True, progress=False)

    def test_force_replaces_a_model(self, tmp_path: Path) -> None:
        target = convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "m", progress=False)
        (target / "stale.json").touch()
        other = write_model(tmp_path / "m.gguf", **{"llama.context_length": 64})
        assert convert_gguf(other, target, force=True, progress=False) == target
        assert read_json(target, "config")["max_position_embeddings"] == 64
        assert not (target / "stale.json").exists()
        assert sorted(os.listdir(tmp_path)) == ["m", "m.gguf"]

    def test_force_does_not_replace_its_source(self, tmp_path: Path) -> None:
        target = convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "m", progress=False)
        inside = write_model(target / "m.gguf")
        with pytest.raises(CheckpointError, match="which would be replaced"):
            convert_gguf(inside, target, force=True, progress=False)

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        source = write_model(tmp_path / "m.gguf")
        target = convert_gguf(source, tmp_path / "m", progress=False)
        before = {path.name: path.read_bytes() for path in target.iterdir()}

        def fail(_: int) -> None:
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
            convert_gguf(source, target, force=True, progress=False)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert sorted(os.listdir(tmp_path)) == ["m", "m.gguf"]

    def test_missing_parents_are_made(self, tmp_path: Path) -> None:
        target = convert_gguf(write_model(tmp_path / "m.gguf"), tmp_path / "a" / "b" / "m", progress=False)
        assert (target / "config.json").is_file()
