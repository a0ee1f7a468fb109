"""The conversions between Hugging Face, MindSpore and MindFormers checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llm_boost._output import check_new_file, check_space, new_directory, new_file, sync
from llm_boost.checkpoint.assemble import assemble_weights
from llm_boost.checkpoint.files import Tensors, is_checkpoint_file, is_read_with, open_checkpoint, rank_directories
from llm_boost.checkpoint.names import EMBEDDING, HEAD, HUGGING_FACE, MINDFORMERS
from llm_boost.checkpoint.tensors import StoredTensor
from llm_boost.checkpoint.write import SLICE_BYTES, file_bytes, progress_bar, write_mindspore, write_safetensors
from llm_boost.convert_weight.companions import read_config, write_companions
from llm_boost.convert_weight.plan import fused_tensors, halved_tensors, model_tensors
from llm_boost.convert_weight.stream import ChunkReader, converted
from llm_boost.errors import CheckpointError
from llm_boost.model_config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How to convert.

    Attributes:
        dtype: "float32", "float16" or "bfloat16" for all weights; None leaves each as it is stored.
        architecture: "llama" or "qwen2", which the model must be; None for either.
        force: Whether an existing target is replaced.
        progress: Whether a bar is shown where stderr is a terminal.
        slice_bytes: Larger tensors are cut into values of this size in ``.ckpt`` files, as MindSpore does.
    """

    dtype: str | None = None
    architecture: str | None = None
    force: bool = False
    progress: bool = True
    slice_bytes: int = SLICE_BYTES


def convert_to_mindspore(
    source: Path, target: Path, options: Options | None = None, *, fused: bool = False, config_path: Path | None = None
) -> Path:
    """Converts a model to a MindSpore checkpoint.

    Args:
        source: A Hugging Face directory, or any other checkpoint that `read_checkpoint` takes.
        target: The file to make, a safetensors file if its name ends so. ``.ckpt`` is added unless it ends in ``ckpt``.
        options: How to convert.
        fused: Whether q, k, v and gate, up are joined, as llm_boost wants them.
        config_path: What describes the model if no config.json is beside the weights: such a file, a directory that
            has one, or a run config.

    Returns:
        The file that was made.

    Raises:
        CheckpointError: The source is damaged, or the target exists or cannot be written.
        ConfigError: The model's config cannot be used.

    Example:
        >>> convert_to_mindspore(Path("llama-2-7b"), Path("llama2_7b.ckpt"))  # doctest: +SKIP
        PosixPath('llama2_7b.ckpt')
    """
    options = options or Options()
    target = _new_target(source, target, options)
    ranks = open_checkpoint(source)
    config = read_config(source, config_path, options.architecture)
    tensors = model_tensors(ranks, config, str(source), MINDFORMERS, fused=fused, head=True)
    return _write_file(tensors, target, options)


def convert_to_hugging_face(
    source: Path, target: Path, options: Options | None = None, *, config_path: Path | None = None
) -> Path:
    """Converts a checkpoint to a Hugging Face model directory: the way back.

    Args:
        source: A ``.ckpt`` or safetensors file, or a directory; fused or not, of one rank or several.
        target: The directory to make. It gets the weights, config.json and the tokenizer's files.
        options: How to convert.
        config_path: As for `convert_to_mindspore`. Of a run config, config.json is made anew, without a
            tokenizer.

    Returns:
        `target`.

    Raises:
        CheckpointError: The source is damaged, or the target exists or cannot be written.
        ConfigError: The model's config is missing or cannot be used.
    """
    options = options or Options()
    ranks = open_checkpoint(source)
    config = read_config(source, config_path, options.architecture)
    tensors = model_tensors(ranks, config, str(source), HUGGING_FACE, fused=False, head=False)
    if config.tie_word_embeddings and HEAD in ranks[0]:
        _check_tied(ranks, config, str(source))
    with new_directory(target, source=source, force=options.force) as partial:
        write_companions(source, config_path, config, partial, options.dtype or tensors[0].dtype)
        check_space(target.parent, file_bytes(converted(tensors, options.dtype)))
        with (partial / "model.safetensors").open("wb") as file:
            _write(file, tensors, options, ".safetensors", title="pt")
            sync(file)
    return target


def fuse_checkpoint(source: Path, target: Path, options: Options | None = None) -> Path:
    """Joins wq, wk, wv to w_qkv and w1, w3 to w_gate_hidden; all other tensors are copied.

    Args:
        source: A MindFormers checkpoint; or a directory of ``rank_0``, ``rank_1``, ..., each of which is fused alone.
        target: The file to make; or the directory, which becomes like `source`.
        options: How to convert.

    Returns:
        What was made.

    Raises:
        CheckpointError: The source is damaged or cannot be fused, or the target exists or cannot be written.
    """
    options = options or Options()
    ranks = rank_directories(source) if source.is_dir() else []
    if not ranks:
        target = _new_target(source, target, options)
        (stored,) = open_checkpoint(source)
        return _write_file(fused_tensors(stored, str(source)), target, options)
    with new_directory(target, source=source, force=options.force, mark="rank_0/checkpoint_0.ckpt") as partial:
        shares = [fused_tensors(stored, str(rank)) for rank in ranks for stored in open_checkpoint(rank)]
        check_space(target.parent, file_bytes(output for share in shares for output in converted(share, options.dtype)))
        for number, (rank, share) in enumerate(zip(ranks, shares, strict=True)):
            _write_file(share, partial / rank.name / f"checkpoint_{number}.ckpt", options)
    return target


def update_checkpoint(
    source: Path, target: Path, config_path: Path | None = None, options: Options | None = None
) -> Path:
    """Puts the rows of wq and wk of an old MindFormers checkpoint into the order that Hugging Face has.

    Raises:
        CheckpointError: The source is damaged or does not fit, or the target exists or cannot be written.
    """
    options = options or Options()
    target = _new_target(source, target, options)
    (stored,) = open_checkpoint(source)
    config = read_config(source, config_path, options.architecture)
    return _write_file(halved_tensors(stored, config, str(source)), target, options)


def checkpoint_name(target: Path) -> Path:
    """`target` with an extension that tells the format, as MindSpore adds it.

    Example:
        >>> checkpoint_name(Path("out/llama2")).name, checkpoint_name(Path("x.safetensors")).name
        ('llama2.ckpt', 'x.safetensors')
    """
    known = is_checkpoint_file(target) or os.path.isdir(target)  # a directory is refused under its own name
    return target if known else target.with_name(target.name + ".ckpt")


def _new_target(source: Path, target: Path, options: Options) -> Path:
    """The file to make, which must not be there, nor become a part of what is converted."""
    target = checkpoint_name(target)
    check_new_file(target, force=options.force)
    if os.path.isdir(source) and target.parent.resolve() == source.resolve() and is_read_with(source, target.name):
        raise CheckpointError(f"{target}: would be read as a part of '{source}' from now on; choose another directory")
    return target


def _write_file(tensors: Sequence[StoredTensor], target: Path, options: Options) -> Path:
    if any(os.path.exists(target) and Path(s.path).samefile(target) for t in tensors for s in t.segments[:1]):
        raise CheckpointError(f"{target}: is what is converted; choose another name")
    num_bytes = file_bytes(converted(tensors, options.dtype))
    with new_file(target, num_bytes=num_bytes, force=options.force) as file:
        _write(file, tensors, options, target.name, title="ms")
    return target


def _write(file: BinaryIO, tensors: Sequence[StoredTensor], options: Options, name: str, title: str) -> None:
    outputs = converted(tensors, options.dtype)
    with ChunkReader() as reader, progress_bar(outputs, enabled=options.progress) as bar:
        pairs = zip(tensors, outputs, strict=True)
        contents = (reader.chunks(tensor, output.dtype) for tensor, output in pairs)
        if name.endswith(".safetensors"):
            write_safetensors(file, outputs, contents, bar, title)
        else:
            write_mindspore(file, outputs, contents, bar, options.slice_bytes)


def _check_tied(ranks: Sequence[Tensors], config: ModelConfig, where: str) -> None:
    """Hugging Face does not store a tied head; one that is not the embedding must not get lost."""
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    weights = {weight.name: weight for weight in assemble_weights(ranks, untied, where)}
    head, embedding = weights[HEAD], weights[EMBEDDING]
    with ChunkReader() as left, ChunkReader() as right:
        pairs = zip(left.chunks(head, head.dtype), right.chunks(embedding, embedding.dtype), strict=False)
        if head.dtype != embedding.dtype or any(mine != other for mine, other in pairs):
            raise CheckpointError(
                f"{where}: '{HEAD}' is not the embedding, but config.json has tie_word_embeddings; set that to false"
            )
