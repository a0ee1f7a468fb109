"""Converts a GGUF file to a Hugging Face model directory."""

from __future__ import annotations

import json
from pathlib import Path

from llm_boost._output import new_directory
from llm_boost.gguf_convert.config import hf_config, read_dims
from llm_boost.gguf_convert.reader import read_gguf
from llm_boost.gguf_convert.tokenizer import build_tokenizer, read_vocabulary, tokenizer_config
from llm_boost.gguf_convert.weights import plan_weights, write_safetensors


def convert_gguf(source: Path, target: Path, *, force: bool = False, progress: bool = True) -> Path:
    """Converts the GGUF file `source`, a Llama or Qwen2 model, to the model directory `target`.

    The weights come out as bfloat16. `target` appears complete or not at all: everything is written to
    ``<target>.partial-<id>``, which is renamed at the end.

    Args:
        source: A GGUF file; its tensors may be of any type that the gguf package can dequantise.
        target: The directory to make.
        force: Whether `target` is replaced if it is a model directory already.
        progress: Whether a bar is shown where stderr is a terminal.

    Returns:
        `target`.

    Raises:
        CheckpointError: `source` is damaged or not supported, or `target` exists or cannot be written.

    Example:
        >>> convert_gguf(Path("smollm2.gguf"), Path("smollm2"))  # doctest: +SKIP
        PosixPath('smollm2')
    """
    with new_directory(target, source=source, force=force) as partial:
        _convert(source, partial, progress=progress)
    return target


def _convert(source: Path, directory: Path, *, progress: bool) -> None:
    gguf = read_gguf(source)
    dims = read_dims(gguf)
    weights = plan_weights(gguf, dims)
    vocabulary = read_vocabulary(gguf, dims.vocab)
    roles = vocabulary.roles
    ids = {
        "bos_token_id": roles.get("bos"),
        "eos_token_id": roles.get("eos"),
        "pad_token_id": roles.get("padding"),
    }
    # Generation ends at every token that ends a turn, of which a config names one.
    ends = list(dict.fromkeys(roles[role] for role in ("eos", "eot", "eom") if role in roles))
    contents = {
        "config.json": hf_config(gguf, dims) | ids,
        "generation_config.json": ids | ({"eos_token_id": ends} if len(ends) > 1 else {}),
        "tokenizer_config.json": tokenizer_config(gguf, vocabulary, dims.max_positions),
    }
    for name, values in contents.items():
        _write(directory / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    _write(directory / "tokenizer.json", build_tokenizer(gguf, vocabulary).to_str(pretty=True))
    write_safetensors(gguf, weights, directory / "model.safetensors", progress=progress)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
