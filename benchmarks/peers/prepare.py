"""Sets up peers and models under one directory; what is there already stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from catalog import LLAMA_CPP_PYTHON, ModelSpec, Peer
from safetensors.numpy import save_file

from llm_boost.hub import resolve_model

_TENSOR_NOISE = 1 << 22  # random numbers that all tensors are cut from, each from a place of its own


class SetupError(Exception):
    """A step of the setup failed; its log says why."""


def _run(log: Path, command: Sequence[str | Path], **environment: str) -> None:
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        file.flush()
        done = subprocess.run(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    if done.returncode != 0:
        raise SetupError(f"{command[0]} failed with code {done.returncode}; see {log}")


@contextmanager
def _finished(path: Path) -> Iterator[bool]:
    """Whether `path`'s step was finished before; it is marked as finished when the block ends without an error."""
    mark = path.with_name(path.name + ".done")
    yield mark.exists()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def python_of(home: Path, peer: Peer) -> Path:
    """The interpreter of a peer's environment."""
    return home / peer.name / "venv" / "bin" / "python"


def prepare_peer(home: Path, peer: Peer) -> None:
    """Makes a peer's virtual environment, with a llama.cpp built for this machine where it needs one.

    Raises:
        SetupError: A package cannot be installed or built.
    """
    folder = home / peer.name
    with _finished(folder / "venv") as done:
        if done:
            return
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "setup.log"
        python = python_of(home, peer)
        _run(log, [sys.executable, "-m", "venv", folder / "venv"])
        if peer.llama_cpp_flags:
            _run(log, [python, "-m", "pip", "install", *peer.build_packages])
            _build_llama_cpp(folder, python, peer, log)
        # The library is the one built above: the package brings its Python part alone.
        flags = "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"
        _run(log, [python, "-m", "pip", "install", *peer.packages], CMAKE_ARGS=flags)
        if peer.unwanted:
            _run(log, [python, "-m", "pip", "uninstall", "--yes", *peer.unwanted])


def _build_llama_cpp(folder: Path, python: Path, peer: Peer, log: Path) -> None:
    source = llama_cpp_source(folder, python, log)
    build = folder / "build"
    tools = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_COMMON=OFF"]
    _run(log, ["cmake", "-S", source, "-B", build, *flags, *peer.llama_cpp_flags], PATH=tools)
    _run(log, ["cmake", "--build", build, "--target", "llama"], PATH=tools)


def llama_cpp_source(folder: Path, python: Path, log: Path) -> Path:
    """llama.cpp as the source package of llama-cpp-python carries it."""
    download = [python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", folder]
    if not list(folder.glob("llama_cpp_python-*.tar.gz")):
        _run(log, [*download, LLAMA_CPP_PYTHON])
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    source = folder / archive.name.removesuffix(".tar.gz")
    if not source.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return source / "vendor" / "llama.cpp"


def prepare_model(home: Path, spec: ModelSpec) -> Path:
    """The Hugging Face directory of a model, written with random weights where it has no real ones."""
    if spec.pulled:
        return resolve_model(spec.pulled)
    directory = home / "models" / spec.name
    with _finished(directory) as done:
        if not done:
            _write_random_model(directory, spec.config)
    return directory


def _write_random_model(directory: Path, config: dict[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = resolve_model("smollm2-135m-instruct")  # some tokenizer: prompts are token ids
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory / name)
    random = np.random.default_rng(1)
    noise = (random.standard_normal(_TENSOR_NOISE, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    shards: dict[str, str] = {}
    for number, names in enumerate(_shards(config)):
        file = f"model-{number:05}.safetensors"
        tensors = {name: _tensor(shape, noise, random) for name, shape in names.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensor(shape: tuple[int, ...], noise: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return (1 + noise[: shape[0]].astype(np.float32)).astype(ml_dtypes.bfloat16)
    size = int(np.prod(shape))
    start = int(random.integers(len(noise)))
    return np.resize(np.roll(noise, -start), size).reshape(shape)


def _shards(config: dict[str, object]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, a layer at a time."""

    def extent(name: str) -> int:
        return int(str(config[name]))

    hidden, ffn, vocab = extent("hidden_size"), extent("intermediate_size"), extent("vocab_size")
    kv = hidden // extent("num_attention_heads") * extent("num_key_value_heads")
    outer: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        outer["lm_head.weight"] = (vocab, hidden)
    yield outer
    for layer in range(extent("num_hidden_layers")):
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        if config["model_type"] == "qwen2":
            shapes |= {f"self_attn.{x}_proj.bias": (rows,) for x, rows in (("q", hidden), ("k", kv), ("v", kv))}
        yield {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def convert_model(home: Path, peers: Sequence[Peer], spec: ModelSpec, directory: Path, model_format: str) -> Path:
    """`directory` in the format that a peer reads, converted by that peer's own tools.

    Raises:
        SetupError: The conversion failed.
    """
    if model_format == "hf":
        return directory
    target = home / "models" / f"{spec.name}.{model_format}"
    log = home / "models" / f"{spec.name}.{model_format}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _finished(target) as done:
        if done:
            return target
        by_name = {peer.name: peer for peer in peers}
        if model_format == "openvino":
            python = python_of(home, by_name["openvino-genai"])
            export = [python.parent / "optimum-cli", "export", "openvino", "--model", directory]
            _run(log, [*export, "--task", "text-generation-with-past", "--weight-format", "fp16", target])
        else:  # the converter needs torch and transformers
            prepare_peer(home, by_name["transformers"])
            python = python_of(home, by_name["transformers"])
            folder = home / "llama.cpp"
            source = llama_cpp_source(folder, python, log)
            script = [python, source / "convert_hf_to_gguf.py", directory, "--outtype", "bf16", "--outfile", target]
            _run(log, [python, "-m", "pip", "install", "sentencepiece"])
            _run(log, script, PYTHONPATH=str(source / "gguf-py"))
    return target
