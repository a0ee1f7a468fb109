"""Memory: loading takes little more than the packed weights, and steps allocate nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reference.tiny_models import TinySpec, write_tiny_model
from sanitizer import SANITIZED

import llm_boost
from llm_boost import _testing  # noqa: F401  # its presence means that the test programs were built

LOAD = """
import sys
from pathlib import Path
from llm_boost import _core
from llm_boost.checkpoint import read_checkpoint
from llm_boost.model_config import ModelConfig

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

directory = Path(sys.argv[1])
config = ModelConfig.from_directory(directory)
table = read_checkpoint(directory, config)
options = _core.EngineOptions()
options.num_blocks = 4
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
model = _core.LoadedModel(config.to_core(64), table, options)
print((status("VmHWM") - before) / model.info()["weight_bytes"])
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own memory counts too")
def test_loading_takes_at_most_15_percent_more_than_the_packed_weights(tmp_path: Path) -> None:
    spec = TinySpec(hidden=1024, heads=16, kv_heads=4, ffn=4096, layers=6, vocab=32000)
    directory = write_tiny_model(tmp_path / "big", spec)
    ratio = float(
        subprocess.run([sys.executable, "-c", LOAD, str(directory)], capture_output=True, text=True, check=True).stdout
    )
    assert 0.9 < ratio < 1.15


USE = """
import json
import sys
from llm_boost import Model, SamplingParams

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon:"))

before = anonymous()
model = Model.from_pretrained(
    sys.argv[1], num_blocks=256, max_model_len=4096, max_num_seqs=1, use_tqdm=False, num_threads=4
)
info = model.info()
loaded = anonymous()
model.generate(list(range(256)), SamplingParams(max_tokens=1, temperature=0))
cache = info.cache_bytes * 256 // (info.num_blocks * info.block_size)
print(json.dumps([loaded - before - info.weight_bytes, anonymous() - loaded - cache]))
"""


@pytest.mark.skipif(SANITIZED, reason="the sanitizer's own memory counts too")
def test_what_is_not_used_yet_takes_no_memory(tmp_path: Path) -> None:
    """4 samplers have room for 100,000 tokens, 3.6 MB each, and 24 layers for 4,096 positions, 2.1 MB each."""
    spec = TinySpec(hidden=128, heads=4, kv_heads=4, ffn=128, layers=24, vocab=100_000, max_position=4096)
    directory = write_tiny_model(tmp_path / "wide", spec)
    command = [sys.executable, "-c", USE, str(directory)]
    beside_weights, beside_cache = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert beside_weights < 4e6
    assert beside_cache < 12e6


def test_decoding_allocates_nothing(tmp_path: Path) -> None:
    program = Path(llm_boost.__file__).parent / "bin" / "llm_boost_step_allocations"
    output = subprocess.run([program, tmp_path / "weights"], capture_output=True, text=True, check=True).stdout
    assert output == "0 allocations in 100 steps, 800 tokens\n"
