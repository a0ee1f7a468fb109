"""Conversion of large tensors: memory stays small, and MindSpore's slices are cut and put together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from large_checkpoint import CONFIG, EMBEDDING, EMBEDDING_BYTES, checksum, write_large_checkpoint
from reference.tiny_models import TinySpec, write_tiny_model
from sanitizer import SANITIZED

from llm_boost.checkpoint import StoredTensor, open_checkpoint
from llm_boost.convert_weight import Options, convert_to_hugging_face, fuse_checkpoint

MEMORY = """
import sys
from llm_boost import convert_weight

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
assert convert_weight.main(sys.argv[1:]) == 0
print(status("VmHWM") - before, file=sys.stderr)
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own memory counts too")
@pytest.mark.parametrize("words", [[], ["--dtype", "fp16"], ["--qkv_concat"], ["--reversed"]])
def test_memory_is_bounded(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, words: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "large"
    if not root.is_dir():
        write_tiny_model(root, TinySpec(hidden=512, heads=8, kv_heads=8, ffn=1024, vocab=40000))
    largest = 40000 * 512 * 2
    command = [sys.executable, "-c", MEMORY, root, tmp_path / "out", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stderr.split()[-1]) < 0.75 * largest  # half of what is allowed: a chunk and the modules it needs


def test_tensors_above_512_mib_are_sliced_and_put_together(brief_path: Path) -> None:
    options = Options(progress=False)
    (brief_path / "config.json").write_text(json.dumps(CONFIG.config()))
    source = write_large_checkpoint(brief_path / "source.safetensors")
    fused = fuse_checkpoint(source, brief_path / "fused.ckpt", options)
    slices = stored(fused, EMBEDDING).segments
    assert [num_bytes for _, _, num_bytes in slices] == [512 << 20, EMBEDDING_BYTES - (512 << 20)]
    assert checksum(stored(fused, EMBEDDING)) == checksum(stored(source, EMBEDDING))
    back = convert_to_hugging_face(fused, brief_path / "back", options, config_path=brief_path)
    assert checksum(stored(back, "model.embed_tokens.weight")) == checksum(stored(fused, EMBEDDING))


def stored(path: Path, name: str) -> StoredTensor:
    (tensors,) = open_checkpoint(path)
    return tensors[name]
