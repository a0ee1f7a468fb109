"""Checkpoints exchanged with the MindSpore package itself, on its CPU backend. Opt-in: ``pytest -m mindspore``.

MindSpore runs in a process of its own: its import takes seconds, warns, and starts threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large_checkpoint import EMBEDDING, checksum, write_large_checkpoint
from test_convert_weight import array

from llm_boost import CheckpointError
from llm_boost.checkpoint import open_checkpoint
from llm_boost.convert_weight import Options, convert_to_mindspore, fuse_checkpoint

pytestmark = pytest.mark.mindspore

LOAD = """
import json, sys, zlib
import mindspore
kind = sys.argv[1].rpartition(".")[2]
tensors = mindspore.load_checkpoint(sys.argv[1], format=kind, crc_check=kind == "ckpt")
found = {name: (str(t.dtype), list(t.shape), zlib.crc32(t.get_bytes())) for name, t in tensors.items()}
print("\\n" + json.dumps(found))
"""
SAVE = """
import json, sys
import mindspore, numpy as np
from mindspore import Tensor
from mindspore.train import serialization
serialization.SLICE_SIZE = 4  # KB instead of 512 MB
options = json.loads(sys.argv[2])
if "enc_key" in options: options["enc_key"] = options["enc_key"].encode()
random = np.random.default_rng(0)
tensors = [{"name": kind + ".weight", "data": Tensor(random.random((41, 129)), getattr(mindspore, kind))}
           for kind in ("float32", "float16", "bfloat16")]
tensors += [{"name": "scalar", "data": Tensor(2.5, mindspore.float32)}]
notes = {"epoch_num": 3} | ({} if "format" in options else {"note": "hello"})  # safetensors has no text
mindspore.save_checkpoint(tensors, sys.argv[1], append_dict=notes, **options)
"""
SAVE_LARGE = """
import sys, zlib
import mindspore, numpy as np
from mindspore import Tensor
marked = np.zeros((128 << 10 | 1, 2048), np.float16)
marked[[0, 1 << 16, 128 << 10], [0, 1023, 2047]] = 1, 2, 3
tensors = [{"name": "whole", "data": Tensor(marked)}, {"name": "bytes", "data": Tensor(marked, mindspore.bfloat16)}]
mindspore.save_checkpoint(tensors, sys.argv[1], crc_check=True)
print([zlib.crc32(each["data"].get_bytes()) for each in tensors])
"""
TYPES = {"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"}


def mindspore(script: str, *words: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def ours(path: Path) -> dict[str, tuple[str, list[int], int]]:
    (tensors,) = open_checkpoint(path)
    return {
        name: (stored.dtype, list(stored.shape), zlib.crc32(array(stored).tobytes()))
        for name, stored in tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "suffix", "slice_bytes"),
    [
        ("llama_mha", "ckpt", 5000),
        ("qwen2_f16", "ckpt", 5000),
        ("llama_mqa_f32", "ckpt", 1 << 29),
        ("llama_mha", "safetensors", 1 << 29),
    ],
)
def test_mindspore_loads_what_we_write(
    tiny_model: Callable[[str], Path], tmp_path: Path, name: str, slice_bytes: int, suffix: str
) -> None:
    options = Options(progress=False, slice_bytes=slice_bytes)
    split = convert_to_mindspore(tiny_model(name), tmp_path / f"split.{suffix}", options)
    fused = fuse_checkpoint(split, tmp_path / f"fused.{suffix}", options)
    for path in (split, fused):
        theirs = json.loads(mindspore(LOAD, path).splitlines()[-1])
        assert {n: (TYPES[kind], shape, crc) for n, (kind, shape, crc) in theirs.items()} == ours(path)


@pytest.mark.parametrize("options", [{}, {"crc_check": True}, {"format": "safetensors"}])
def test_we_load_what_mindspore_writes(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / f"x.{options.get('format', 'ckpt')}"
    mindspore(SAVE, path, json.dumps(options))
    (tensors,) = open_checkpoint(path)
    random = np.random.default_rng(0)
    for kind in ("float32", "float16", "bfloat16"):
        stored = tensors[f"{kind}.weight"]
        values = array(stored)
        expected = random.random((41, 129)).astype(np.float32).astype(values.dtype)
        assert (stored.dtype, stored.shape) == (kind, (41, 129))
        assert len(stored.segments) == (1 if options.get("format") else -(-values.nbytes // 4096))
        np.testing.assert_array_equal(values, expected)
    assert array(tensors["scalar"]) == np.float32(2.5)
    assert "note" not in tensors


def test_mindspore_loads_a_tensor_that_we_cut_at_512_mib(brief_path: Path) -> None:
    source = write_large_checkpoint(brief_path / "source.safetensors")
    fused = fuse_checkpoint(source, brief_path / "fused.ckpt", Options(progress=False))
    theirs = json.loads(mindspore(LOAD, fused).splitlines()[-1])
    (tensors,) = open_checkpoint(fused)
    assert len(tensors[EMBEDDING].segments) == 2
    assert theirs == {name: ["BFloat16", list(stored.shape), checksum(stored)] for name, stored in tensors.items()}


def test_we_load_tensors_that_mindspore_cuts_at_512_mib(brief_path: Path) -> None:
    theirs = json.loads(mindspore(SAVE_LARGE, brief_path / "x.ckpt").splitlines()[-1])
    (tensors,) = open_checkpoint(brief_path / "x.ckpt")
    assert [stored.dtype for stored in tensors.values()] == ["float16", "bfloat16"]
    assert [checksum(stored) for stored in tensors.values()] == theirs
    sizes = [[num_bytes for _, _, num_bytes in stored.segments] for stored in tensors.values()]
    assert sizes == [[512 << 20, 4096], [512 << 20, 4096]]


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_encrypted_checkpoints_are_refused(tmp_path: Path, mode: str) -> None:
    mindspore(SAVE, tmp_path / "x.ckpt", json.dumps({"enc_key": "0123456789abcdef", "enc_mode": mode}))
    with pytest.raises(CheckpointError, match="is encrypted; load it in MindSpore"):
        open_checkpoint(tmp_path / "x.ckpt")
