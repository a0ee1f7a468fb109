"""Weights: every malformed checkpoint is one typed error, and what loads is what is stored."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from llm_boost import CheckpointError, ConfigError, Model, _core
from llm_boost.checkpoint import read_checkpoint
from llm_boost.checkpoint.safetensors_file import read_safetensors_header
from llm_boost.model_config import ModelConfig


def raw(header: object, data: bytes = b"", header_bytes: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty file": (b"", "too few for a safetensors file"),
    "short file": (b"1234", "too few"),
    "header longer than the file": (raw({}, header_bytes=1 << 20), "claims a header of 1048576 bytes"),
    "header length of 2^63": (raw({}, header_bytes=1 << 63), "claims a header of 9223372036854775808 bytes"),
    "not an object": (raw([1]), "does not start with"),
    "leading space": (raw(b" {}"), "does not start with"),
    "not JSON": (raw(b"{oops}"), "not valid JSON"),
    "not UTF-8": (raw(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "nested without end": (raw(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "duplicate key": (raw(b'{"a": 1, "a": 2}'), "has the key 'a' twice"),
    "metadata is a list": (raw({"__metadata__": []}), "__metadata__ is not an object of strings"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__ is not an object of strings"),
    "entry is a number": (raw({"a": 3}), "'a' is not described by exactly"),
    "entry with more keys": (raw({"a": {**entry(0, 4), "code": "x"}}, bytes(4)), "not described by exactly"),
    "unknown dtype": (raw({"a": entry(0, 4, "F8_E4M3", [4])}, bytes(4)), "dtype 'F8_E4M3'"),
    "dtype is a list": (raw({"a": entry(0, 4, ["F32"])}, bytes(4)), "has dtype"),  # type: ignore[arg-type]
    "negative extent": (raw({"a": entry(0, 4, shape=[-1])}, bytes(4)), r"has the shape \[-1\]"),
    "boolean extent": (raw({"a": entry(0, 4, shape=[True])}, bytes(4)), "has the shape"),
    "fractional extent": (raw({"a": entry(0, 4, shape=[1.0])}, bytes(4)), "has the shape"),
    "rank 9": (raw({"a": entry(0, 4, shape=[1] * 9)}, bytes(4)), "has the shape"),
    "shape overflows": (raw({"a": entry(0, 4, shape=[1 << 62, 1 << 62])}, bytes(4)), "data_offsets span 4"),
    "offsets overflow": (raw({"a": entry(0, 1 << 64, shape=[1 << 62])}), "the file at"),
    "offsets backwards": (raw({"a": entry(4, 0, shape=[1])}, bytes(4)), "has the data_offsets"),
    "negative offset": (raw({"a": entry(-4, 0, shape=[1])}, bytes(4)), "has the data_offsets"),
    "size does not match": (
        raw({"a": entry(0, 8, shape=[1])}, bytes(8)),
        "is F32 .1., 4 bytes, but its data_offsets span 8",
    ),
    "overlap": (raw({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' at data offset 4 overlaps"),
    "same bytes twice": (raw({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "hole": (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "'b' at data offset 8 leaves a hole"),
    "data beyond the tensors": (raw({"a": entry(0, 4)}, bytes(5)), "its tensors end at byte"),
    "data missing": (raw({"a": entry(0, 4)}, bytes(3)), "its tensors end at byte"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors_header(path)


def reference_accepts(path: Path) -> bool:
    try:
        load_file(path)
    except (safetensors.SafetensorError, OverflowError, MemoryError, ValueError, KeyError, TypeError):
        return False
    return True


def test_what_is_no_file(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Opening a pipe would wait for ever, and a directory in the place of a file is not passed over."""
    directory = shutil.copytree(tiny_model("llama_mha"), tmp_path / "m")
    for name, error in (("generation_config.json", ConfigError), ("model.safetensors", CheckpointError)):
        (directory / name).unlink()
        (directory / name).mkdir() if name.endswith("json") else os.mkfifo(directory / "x.safetensors")
        with pytest.raises(error, match=r"(generation_config.json|x.safetensors): is not a file"):
            Model.from_pretrained(directory)
        if name.endswith("json"):
            (directory / name).rmdir()


def test_every_truncation_and_many_flips_agree_with_the_reference_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
    save_file(tensors, path, {"format": "pt"})
    content = path.read_bytes()
    random = np.random.default_rng(0)
    mutants = [content[:size] for size in range(len(content))]
    for _ in range(1500):
        mutant = bytearray(content)
        for at in random.integers(0, len(content), random.integers(1, 4)):
            mutant[at] = random.integers(0, 256)
        mutants.append(bytes(mutant))
    disagreements = []
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            ours = read_safetensors_header(path) is not None
        except CheckpointError as problem:
            ours = False
            reason = str(problem)
        theirs = reference_accepts(path)
        if ours != theirs and not (theirs and "has dtype" in reason):  # we take fewer types
            disagreements.append((mutant, ours))
    assert not disagreements


def edited(directory: Path, target: Path, **changes: object) -> Path:
    """A copy of a model directory with keys of its config.json changed, or removed (None)."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    config.update(changes)
    (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}), "utf-8")
    return target


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_all_problems_of_a_checkpoint_are_one_error(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = edited(tiny_model("llama_mha"), tmp_path / "m")

    def damage(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.k_proj.weight"] = tensors["model.layers.1.self_attn.k_proj.weight"][:-1]
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].astype(np.float16)
        tensors["model.layers.7.extra.weight"] = np.ones(3, np.float32)

    rewrite(directory, damage)
    with pytest.raises(CheckpointError) as caught:
        Model.from_pretrained(directory)
    text = str(caught.value)
    assert "missing 'model.norm.weight' [64]" in text
    assert "'model.layers.1.self_attn.k_proj.weight' bfloat16 [63, 64], expected shape [64, 64]" in text
    assert "surplus model.safetensors: 'model.layers.7.extra.weight'" in text
    assert "feed_forward.w_gate_hidden.weight' have different types: bfloat16, float16" in text


class TestShards:
    """model.safetensors.index.json."""

    @pytest.fixture
    def directory(self, tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
        return shutil.copytree(tiny_model("llama_sharded"), tmp_path / "sharded")

    def edit_index(self, directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
        path = directory / "model.safetensors.index.json"
        index = json.loads(path.read_text("utf-8"))
        change(index)
        path.write_text(json.dumps(index), "utf-8")

    def fails(self, directory: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Model.from_pretrained(directory)

    def test_missing_shard(self, directory: Path) -> None:
        shard = sorted(directory.glob("*-of-*.safetensors"))[1]
        shard.unlink()
        self.fails(directory, f"the shard {shard.name} is missing")

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7])
    def test_index_outside_the_directory(self, directory: Path, name: object) -> None:
        self.edit_index(directory, lambda index: index["weight_map"].update({"lm_head.weight": name}))
        self.fails(directory, "expected a .safetensors file of the same directory")

    def test_index_and_shards_disagree(self, directory: Path) -> None:
        def swap(index: dict[str, Any]) -> None:
            index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]

        self.edit_index(directory, swap)
        self.fails(directory, "the index and the shards disagree: .*model.norm.weight")

    def test_index_without_map(self, directory: Path) -> None:
        self.edit_index(directory, lambda index: index.pop("weight_map"))
        self.fails(directory, "has no 'weight_map' object")


def test_no_weights_and_pickles(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = edited(tiny_model("llama_mha"), tmp_path / "m")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: neither model.safetensors, .* files$"):
        Model.from_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a PyTorch pickle, which is never opened"):
        Model.from_pretrained(directory)


def test_a_file_that_shrinks_while_it_is_loaded_is_an_error(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = edited(tiny_model("llama_mha"), tmp_path / "m")
    config = ModelConfig.from_directory(directory)
    table = read_checkpoint(directory, config)
    path = directory / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="the file changed or is truncated"):
        _core.LoadedModel(config.to_core(64), table, _core.EngineOptions())


def test_tied_heads_may_be_stored_twice(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = edited(tiny_model("llama_gqa_tied"), tmp_path / "m")
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    Model.from_pretrained(directory).close()
    untied = edited(tiny_model("llama_gqa_tied"), tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing 'lm_head.weight' \[1000, 64\]"):
        Model.from_pretrained(untied)


CONFIGS = {
    "no architecture": (
        {"architectures": None},
        "architectures is None, expected one of LlamaForCausalLM, Qwen2ForCausalLM",
    ),
    "unknown architecture": ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM'|MambaForCausalLM"),
    "hidden_size 0": ({"hidden_size": 0}, "hidden_size is 0, expected an integer from 1"),
    "hidden_size negative": ({"hidden_size": -64}, "hidden_size is -64"),
    "hidden_size huge": ({"hidden_size": 10**30}, "hidden_size is 1000"),
    "hidden_size text": ({"hidden_size": "64"}, "hidden_size is '64'"),
    "hidden_size fractional": ({"hidden_size": 64.0}, "hidden_size is 64.0"),
    "layers absurd": ({"num_hidden_layers": 100_000}, "num_layers is 100000, expected 1 to 4096"),
    "heads do not divide": ({"num_key_value_heads": 3}, "num_heads is 4, which is not a multiple of num_kv_heads 3"),
    "odd head size": ({"head_dim": 17}, "head_dim is 17, expected an even number"),
    "eps 0": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
    "eps not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    "theta infinite": ({"rope_theta": float("inf")}, "rope_theta is inf"),
    "theta 1": ({"rope_theta": 1.0}, "rope_theta is 1.0, expected a number above 1"),
    "rope type": (
        {"rope_scaling": {"type": "longrope", "factor": 4.0}},
        "rope_scaling: rope type 'longrope' is not supported; default, linear, dynamic, yarn, llama3 are",
    ),
    "rope factor": (
        {"rope_scaling": {"type": "linear", "factor": 0.5}},
        "factor is 0.5, expected a number",
    ),
    "rope setting": (
        {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 1}},
        "'mscale' is no setting",
    ),
    "rope parameters": ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: LLAMA3 needs 'factor'"),
    "rope parameters text": ({"rope_parameters": "yarn"}, "rope_parameters is 'yarn', expected an object"),
    "partial rope": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor of rope_parameters"),
    "sliding window": ({"use_sliding_window": True}, "sliding-window attention is not supported"),
    "layer types": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types has"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is true"),
    "tie is a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
    "several at once": ({"hidden_size": 0, "vocab_size": -1}, "(?s)hidden_size.*vocab_size"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_cannot_be_used(tiny_model: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    changes, message = CONFIGS[case]
    directory = edited(tiny_model("llama_mha"), tmp_path / "m", **changes)
    with pytest.raises(ConfigError, match=message):
        Model.from_pretrained(directory)


@pytest.mark.parametrize("eos", [10**9, -1, "x", [2, 10**9], 1.5])
def test_end_of_text_tokens_outside_the_vocabulary(
    tiny_model: Callable[[str], Path], tmp_path: Path, eos: object
) -> None:
    directory = edited(tiny_model("llama_mha"), tmp_path / "m")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}), "utf-8")
    with pytest.raises(ConfigError, match="eos_token_id is"):
        Model.from_pretrained(directory)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}'])
def test_config_that_is_not_json(tiny_model: Callable[[str], Path], tmp_path: Path, content: bytes) -> None:
    directory = edited(tiny_model("llama_mha"), tmp_path / "m")
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        Model.from_pretrained(directory)


def test_stored_types_can_be_converted_while_loading(tiny_model: Callable[[str], Path]) -> None:
    directory = tiny_model("llama_f16")
    prompt = list(range(40, 60))
    info = {}
    for dtype in ("auto", "float16", "float32", "bfloat16"):
        with Model.from_pretrained(directory, dtype=dtype) as model:
            info[dtype] = model.info()
            model.generate(prompt)
    assert info["auto"].weight_bytes == info["float16"].weight_bytes
    assert info["bfloat16"].weight_bytes < 0.8 * info["float16"].weight_bytes  # in 12 bits
    assert info["float32"].weight_bytes > 1.8 * info["auto"].weight_bytes
    assert [info[d].activation_dtype for d in info] == ["float32", "float32", "float32", "bfloat16"]


def test_bf16_conversion_rounds_to_nearest_even(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = edited(tiny_model("llama_mqa_f32"), tmp_path / "f32")
    rounded = edited(tiny_model("llama_mqa_f32"), tmp_path / "rounded")

    def round_all(tensors: dict[str, np.ndarray]) -> None:
        tensors.update(
            {
                name: tensor.astype(ml_dtypes.bfloat16) if tensor.ndim == 2 else tensor
                for name, tensor in tensors.items()
            }
        )

    rewrite(rounded, round_all)
    arrays = {
        "token_ids": [1, 2, 3],
        "positions": [0, 1, 2],
        "slots": [0, 1, 2],
        "seq_begin": [0, 3],
        "context_len": [3],
        "logit_rows": [0, 1, 2],
    }
    logits = []
    for path, dtype in [(directory, "bfloat16"), (rounded, "auto")]:
        with Model.from_pretrained(path, dtype=dtype, activation_dtype="float32", max_model_len=16) as model:
            logits.append(model.forward(**arrays, block_table=[0]))
    np.testing.assert_array_equal(logits[0], logits[1])
