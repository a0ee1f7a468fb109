"""GGUF files that cannot be converted: a `CheckpointError` says why, and nothing is left behind."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf_files import (
    Sizes,
    byte_vocabulary,
    gguf_tensors,
    hf_weights,
    model_metadata,
    write_gguf,
    write_model,
)

from llm_boost.errors import CheckpointError
from llm_boost.gguf_convert import convert_gguf

SIZES = Sizes()
METADATA = byte_vocabulary() | model_metadata("llama", SIZES)
EPSILON = "attention.layer_norm_rms_epsilon"


def failure(source: Path) -> str:
    """Converts `source`, which has to fail without a trace, and returns the message."""
    with pytest.raises(CheckpointError) as error:
        convert_gguf(source, source.parent / "out", progress=False)
    assert os.listdir(source.parent) == [source.name]
    assert str(error.value).startswith(f"{source}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "'llama.block_count' is missing"),
        ({"block_count": "2"}, "'llama.block_count' is '2', expected int"),
        ({"block_count": 0}, "'llama.block_count' is 0, expected 1 to"),
        ({"block_count": 2**31}, "'llama.block_count' is 2147483648, expected 1 to"),
        ({"block_count": 100}, "20 tensors, but 100 layers"),
        ({"block_count": 3}, "9 missing: 'blk.2.attn_norm.weight' (32,)"),
        ({"block_count": 1}, "9 not part of a dense llama model: 'blk.1."),
        ({"feed_forward_length": 47}, "'blk.0.ffn_down.weight' is (32, 48), expected (32, 47)"),
        ({"attention.head_count": 5}, "5 heads cannot share 2 kv heads"),
        ({"attention.key_length": 7}, "the head size 7 is odd"),
        ({"attention.value_length": 4}, "keys and values differ in size"),
        ({"attention.key_length": 8, "rope.dimension_count": 4}, "only a part of each head is rotated"),
        ({"vocab_size": 300}, "'token_embd.weight' is (261, 32), expected (300, 32)"),
        ({EPSILON: 0.0}, f"'llama.{EPSILON}' is 0.0, expected a positive number"),
        ({EPSILON: math.nan}, f"'llama.{EPSILON}' is nan, expected a positive number"),
        ({"rope.freq_base": math.inf}, "'llama.rope.freq_base' is inf, expected a positive number"),
        ({"rope.scaling.type": "longrope"}, "unknown rope scaling 'longrope'; Known: linear, none, yarn"),
        ({"rope.scaling.type": "linear"}, "'llama.rope.scaling.factor' is missing"),
        ({"rope.scaling.attn_factor": 0.5}, "so the result would be another model: llama.rope.scaling.attn"),
        ({"expert_count": 8}, "llama.expert_count = 8"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"attention.sliding_window": 64}, "llama.attention.sliding_window = 64"),
    ],
)
def test_models_that_cannot_be_converted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changes = {f"llama.{key}": value for key, value in changes.items()}
    assert message in failure(write_model(tmp_path / "m.gguf", **changes))


def test_metadata_that_switches_a_feature_off(tmp_path: Path) -> None:
    changes = {"llama.expert_count": 0, "llama.rope.scaling.attn_factor": 1.0, "llama.attention.causal": True}
    convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)


def test_unknown_architectures_are_named(tmp_path: Path) -> None:
    message = failure(write_gguf(tmp_path / "m.gguf", "qwen2moe", METADATA, {}))
    assert "unknown GGUF architecture 'qwen2moe'; did you mean 'qwen2'? Known: llama, qwen2" in message


def test_one_of_several_parts(tmp_path: Path) -> None:
    assert "llama-gguf-split --merge" in failure(write_model(tmp_path / "m.gguf", **{"split.count": 2}))


def test_all_missing_tensors_are_named_at_once(tmp_path: Path) -> None:
    tensors = gguf_tensors("llama", SIZES, hf_weights("llama", SIZES, bias=True))
    for name in ("blk.1.attn_q.bias", "blk.1.ffn_up.weight", "output_norm.weight"):
        del tensors[name]
    message = failure(write_gguf(tmp_path / "m.gguf", "llama", METADATA, tensors))
    assert "3 missing: 'blk.1.ffn_up.weight' (48, 32), 'blk.1.attn_q.bias' (32,), 'output_norm.weight'" in message


def test_superfluous_tensors(tmp_path: Path) -> None:
    tensors = gguf_tensors("qwen2", SIZES, hf_weights("qwen2", SIZES))
    tensors["rope_freqs.weight"] = np.ones(4, np.float32)  # only the llama architecture has these
    metadata = model_metadata("qwen2", SIZES) | byte_vocabulary()
    message = failure(write_gguf(tmp_path / "m.gguf", "qwen2", metadata, tensors))
    assert "1 not part of a dense qwen2 model: 'rope_freqs.weight'" in message


def test_types_that_cannot_be_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("llm_boost.gguf_convert.convert.write_safetensors")  # it shows before anything is written
    tensors: dict[str, Any] = gguf_tensors("llama", SIZES, hf_weights("llama", SIZES, tie=True))
    tensors["blk.1.attn_v.weight"] = (np.zeros((16, 40), np.uint8), GGMLQuantizationType.Q8_1)
    message = failure(write_gguf(tmp_path / "m.gguf", "llama", METADATA, tensors))
    assert "'blk.1.attn_v.weight' has type Q8_1, which the gguf package cannot dequantise" in message


TOKENS = byte_vocabulary()["tokenizer.ggml.tokens"]
SPM = {
    "model": "llama",
    "tokens": [*TOKENS[:-1], "ba"],
    "token_type": [1] * 261,
    "scores": [0.0] * 261,
    "unknown_token_id": 0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "'tokenizer.ggml.model' is missing"),
        ({"model": "t5"}, "unknown tokenizer.ggml.model 't5'; Known: gpt2, llama"),
        ({"model": ["gpt2"]}, "'tokenizer.ggml.model' is ['gpt2'], expected str"),
        ({"pre": None}, "'tokenizer.ggml.pre' is missing"),
        ({"pre": "smolm"}, "unknown tokenizer.ggml.pre 'smolm'; did you mean 'smollm'?"),
        ({"tokens": None}, "0 tokens, expected 1 to 261"),
        ({"tokens": [*TOKENS, "more"]}, "262 tokens, expected 1 to 261"),
        ({"tokens": "abc"}, "'tokenizer.ggml.tokens' is 'abc', expected a list of strings"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "has equal tokens"),
        ({"tokens": [*TOKENS[:-1], "x" * 513]}, "longer ones than 512"),
        ({"token_type": [1] * 260}, "'tokenizer.ggml.token_type' has 260 elements, expected one a token"),
        ({"token_type": [7] * 261}, "has values other than 1 to 6"),
        ({"token_type": "abc"}, "'tokenizer.ggml.token_type' is 'abc', expected an array of numbers"),
        ({"eos_token_id": 261}, "not ids of any of the 261 tokens: eos 261"),
        ({"bos_token_id": None, "add_bos_token": True}, "its id is missing"),
        ({"eos_token_id": None, "add_eos_token": True}, "its id is missing"),
        ({"add_bos_token": 1}, "'tokenizer.ggml.add_bos_token' is 1, expected bool"),
        ({"merges": ["a c"]}, "merge 'a c' does not join two tokens to a third"),
        ({"merges": ["ab"]}, "merge 'ab' does not join two tokens to a third"),
        ({"merges": ["ab "]}, "merge 'ab ' does not join two tokens to a third"),
        (SPM, "'tokenizer.ggml.scores' are all equal"),
        (SPM | {"unknown_token_id": None}, "'tokenizer.ggml.unknown_token_id' is missing"),
        (SPM | {"scores": None}, "'tokenizer.ggml.scores' is missing or not finite"),
        (SPM | {"scores": [math.nan] * 261}, "'tokenizer.ggml.scores' is missing or not finite"),
        (SPM | {"scores": [0.0]}, "'tokenizer.ggml.scores' has 1 elements"),
    ],
)
def test_vocabularies_that_cannot_be_converted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    assert message in failure(write_model(tmp_path / "m.gguf", **changes))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a GGUF file that can be converted."""
    return write_model(tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


def outcome(folder: Path, data: bytes) -> str:
    """Converts `data`; a test fails of anything but success and `CheckpointError`."""
    source = folder / "m.gguf"
    source.write_bytes(data)
    try:
        shutil.rmtree(convert_gguf(source, folder / "out", progress=False))
        return "converted"
    except CheckpointError as error:
        message = str(error)
    assert os.listdir(folder) == ["m.gguf"]
    assert message.startswith(f"{source}: ")
    return message


def test_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            convert_gguf(path, tmp_path / "out", progress=False)


def test_not_a_gguf(tmp_path: Path) -> None:
    assert "this is no GGUF file" in outcome(tmp_path, b"PK\x03\x04" * 10)


def test_truncated_anywhere(tmp_path: Path, good: bytes) -> None:
    table = good.index(b"token_embd.weight")
    cuts = [*range(40), *range(40, table, 89), *range(table, table + 1200, 17), len(good) // 2, len(good) - 1]
    for cut in cuts:
        assert outcome(tmp_path, good[:cut]) != "converted", f"cut at {cut}"
    assert outcome(tmp_path, good) == "converted"


@pytest.mark.parametrize("seed", range(4))
def test_bytes_changed_anywhere(tmp_path: Path, good: bytes, seed: int) -> None:
    rng = random.Random(seed)
    header_bytes = good.index(b"token_embd.weight") + 1200
    converted = 0
    for _ in range(80):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 1, 4])):
            data[rng.randrange(header_bytes)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        converted += outcome(tmp_path, bytes(data)) == "converted"
    assert 0 < converted < 80  # some bytes, as those of a token, may be anything


STRINGS = struct.pack("<IQ", 8, 261)  # the head of the array of tokens


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return change


def patched(layout: str, offset: int, value: int, after: bytes = b"") -> Callable[[bytes], bytes]:
    """Overwrites one field, `offset` bytes after the first occurrence of `after`."""

    def change(data: bytes) -> bytes:
        begin = data.index(after) + len(after) + offset
        return data[:begin] + struct.pack(layout, value) + data[begin + struct.calcsize(layout) :]

    return change


def of_first_tensor(layout: str, offset: int, value: int) -> Callable[[bytes], bytes]:
    """Overwrites a field of a row of the tensor table: 0 dimensions, 4 and 12 sizes, 20 type, 24 offset."""
    return patched(layout, offset, value, after=b"token_embd.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (patched("<I", 4, 1), "versions (2, 3) are supported"),
        (patched(">I", 4, 3), "big-endian is not supported"),
        (patched("<Q", 8, 2**40), "1099511627776 tensors, expected at most 65536"),
        (patched("<Q", 16, 2**40), "1099511627776 metadata keys, expected at most 65536"),
        (patched("<Q", 24, 2**63), "expected 9223372036854775808 more bytes, but the file ends at"),
        (replaced(STRINGS, struct.pack("<IQ", 8, 2**50)), "array elements, expected at most"),
        (replaced(STRINGS, struct.pack("<IQ", 4, 2**20)), "expected 4194304 more bytes, but the file ends"),
        (replaced(STRINGS, struct.pack("<IQ", 9, 261)), "arrays of arrays are not supported"),
        (replaced(STRINGS, struct.pack("<IQ", 99, 261)), "99 is not a type of metadata value"),
        (replaced(b"llama.block_count", b"llama.block_\xff\xfe\xfdnt"), "a string is not UTF-8"),
        (
            replaced(b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges"),
            "'tokenizer.ggml.merges' appears twice",
        ),
        (replaced(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"), "'blk.0.attn_k.weight' appears twice"),
        (of_first_tensor("<I", 0, 5), "has 5 dimensions, expected 1 to 4"),
        (of_first_tensor("<I", 0, 0), "has 0 dimensions, expected 1 to 4"),
        (of_first_tensor("<Q", 4, 0), "has shape (261, 0), expected whole blocks of 1"),
        (of_first_tensor("<Q", 12, 2**62), "takes bytes"),
        (of_first_tensor("<I", 20, 4), "has type 4, unknown to this gguf package"),
        (of_first_tensor("<I", 20, 12), "has shape (261, 32), expected whole blocks of 256"),
        (of_first_tensor("<Q", 24, 32), "but the one before ends at"),
        (of_first_tensor("<Q", 24, 2**63), "takes bytes 9223372036854"),
    ],
)
def test_each_field(tmp_path: Path, good: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    assert message in outcome(tmp_path, change(good))


@pytest.mark.parametrize("alignment", [0, 3, "32"])
def test_alignment(tmp_path: Path, alignment: object) -> None:
    # The writer of the library refuses to write this key, so another of its length takes its place.
    data = write_model(tmp_path / "m.gguf", **{"general.languages": alignment}).read_bytes()
    data = data.replace(b"general.languages", b"general.alignment")
    assert f"'general.alignment' is {alignment!r}, expected a power of two" in outcome(tmp_path, data)
