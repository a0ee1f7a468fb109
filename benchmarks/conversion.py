"""Conversion against ``cp``: how long ``llm-boost convert`` takes, and how long a copy of what it made.

.. code-block:: shell

    python benchmarks/conversion.py --layers 6 --rounds 5

A random Llama2-7b with few layers is written first, bfloat16 in shards. Each direction is converted once to warm up,
and then copy and conversion take turns; both end with ``sync``. The files they read are in the page cache, as long as
memory lasts. Times are medians of seconds; "inside" leaves out the start of Python and its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, FFN, VOCAB = 4096, 11008, 32000
SHAPES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (FFN, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, FFN),
}
# Name -> source, arguments, target.
DIRECTIONS: dict[str, tuple[str, list[str], str]] = {
    "hf -> ckpt": ("hf", [], "out.ckpt"),
    "hf -> ckpt, fp16": ("hf", ["--dtype", "fp16"], "out.ckpt"),
    "hf -> ckpt, fp32": ("hf", ["--dtype", "fp32"], "out.ckpt"),
    "hf -> fused ckpt": ("hf", ["--qkv_concat"], "out.ckpt"),
    "hf -> safetensors": ("hf", [], "out.safetensors"),
    "ckpt -> fused ckpt": ("split.ckpt", ["--qkv_concat", "--config_path", "hf"], "out.ckpt"),
    "ckpt -> hf": ("split.ckpt", ["--reversed", "--config_path", "hf"], "out"),
}
CONVERT = """
import sys, time
from llm_boost.convert_weight import main
begin = time.perf_counter()
code = main(sys.argv[1:])
print(time.perf_counter() - begin)
sys.exit(code)
"""


def write_model(directory: Path, layers: int) -> None:
    """Writes a random model in shards of a layer."""
    directory.mkdir()
    random = np.random.default_rng(0)
    weight_map = {}

    def save(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            name: (random.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": shape for name, shape in SHAPES.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        save(f"model-{layer}.safetensors", shapes | {f"{prefix}{norm}.weight": (HIDDEN,) for norm in norms})
    ends = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    save("model-ends.safetensors", ends | {"model.norm.weight": (HIDDEN,)})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def convert(*words: str) -> float:
    """Seconds inside a conversion."""
    command = [sys.executable, "-c", CONVERT, *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def timed(action: Callable[[], float | None]) -> tuple[float, float]:
    """Seconds of an action and ``sync``, and the seconds that it returns itself."""
    os.sync()
    begin = time.perf_counter()
    inside = action()
    os.sync()
    return time.perf_counter() - begin, inside or 0.0


def remove(path: str) -> None:
    """Removes a file or directory, and its blocks from the disk."""
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
    os.sync()


def measure(name: str, rounds: int) -> str:
    """A row of the table."""
    source, words, target = DIRECTIONS[name]
    convert(source, target, *words)
    Path(target).rename("made")
    files = [path for path in (Path("made"), *Path("made").glob("*")) if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    copies, conversions, insides = [], [], []
    for _ in range(rounds):
        copies.append(timed(lambda: subprocess.run(["cp", "-r", "made", "copy"], check=True) and None)[0])
        remove("copy")
        seconds, inside = timed(lambda: convert(source, target, *words))
        conversions.append(seconds)
        insides.append(inside)
        remove(target)
    remove("made")
    copy, conversion = statistics.median(copies), statistics.median(conversions)
    spread = f"{min(conversions):.1f}-{max(conversions):.1f}"
    return (
        f"| {name} | {num_bytes / 1e9:.2f} | {copy:.2f} ({min(copies):.1f}-{max(copies):.1f}) | {conversion:.2f} "
        f"({spread}) | {statistics.median(insides):.2f} | {copy / conversion:.2f} |"
    )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="llm-boost convert against cp of the same output")
    parser.add_argument("--layers", type=int, default=6, help="of 405 MB each, besides 524 MB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=DIRECTIONS, default=[*DIRECTIONS], metavar="DIRECTION")
    parser.add_argument("--directory", type=Path, help="where to write; kept, so that the model can be used again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.directory or Path(temporary)).resolve()
        directory.mkdir(exist_ok=True)
        os.chdir(directory)
        if not Path("hf").exists():
            write_model(Path("hf"), arguments.layers)
        if not Path("split.ckpt").exists():
            convert("hf", "split.ckpt")
        print("| direction | GB | cp + sync, s | convert + sync, s | inside, s | cp / convert |")
        print("|---|---|---|---|---|---|")
        for name in arguments.only:
            print(measure(name, arguments.rounds), flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
