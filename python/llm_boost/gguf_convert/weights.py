"""Converts the tensors of a GGUF file, one at a time, into one safetensors file.

Everything is stored as bfloat16, rounded to the nearest, ties to even. For a model trained in bfloat16 that
loses nothing in the norms and biases, which GGUF widens to float32; in the matrices the rounding, 2^-9, is at
most of the order of the quantisation they have been through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llm_boost._output import sync
from llm_boost.checkpoint import write
from llm_boost.checkpoint.write import OutputTensor, progress_bar
from llm_boost.errors import CheckpointError
from llm_boost.gguf_convert.config import ROPE_FACTORS, Dims
from llm_boost.gguf_convert.reader import GgufFile

_CHUNK_ELEMENTS = 1 << 22  # dequantised at a time: 16 MiB of float32
_MAX_NAMES = 10  # that a message lists

# GGUF name, Hugging Face name, and the shape in the symbols of `_expected_weights`.
_Row: TypeAlias = tuple[str, str, str]
_EMBEDDING: _Row = ("token_embd.weight", "model.embed_tokens.weight", "V E")
_LAYER: tuple[_Row, ...] = (
    ("attn_norm.weight", "input_layernorm.weight", "E"),
    ("attn_q.weight", "self_attn.q_proj.weight", "HD E"),
    ("attn_k.weight", "self_attn.k_proj.weight", "KD E"),
    ("attn_v.weight", "self_attn.v_proj.weight", "KD E"),
    ("attn_output.weight", "self_attn.o_proj.weight", "E HD"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "E"),
    ("ffn_gate.weight", "mlp.gate_proj.weight", "F E"),
    ("ffn_up.weight", "mlp.up_proj.weight", "F E"),
    ("ffn_down.weight", "mlp.down_proj.weight", "E F"),
)
_QKV_BIASES: tuple[_Row, ...] = (
    ("attn_q.bias", "self_attn.q_proj.bias", "HD"),
    ("attn_k.bias", "self_attn.k_proj.bias", "KD"),
    ("attn_v.bias", "self_attn.v_proj.bias", "KD"),
)
_O_BIAS: _Row = ("attn_output.bias", "self_attn.o_proj.bias", "E")
_NORM: _Row = ("output_norm.weight", "model.norm.weight", "E")
_LM_HEAD: _Row = ("output.weight", "lm_head.weight", "V E")


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor to convert."""

    source: str  # its GGUF name
    target: str  # its Hugging Face name
    shape: tuple[int, ...]  # in both
    interleaved_heads: int  # heads whose rows have to be put in order, 0 where they are


def plan_weights(gguf: GgufFile, dims: Dims) -> list[Weight]:
    """Lists what to convert, after checking that `gguf` holds just that.

    Raises:
        CheckpointError: Tensors are missing, superfluous or of a wrong shape (the message names them all), or
            one is of a type that cannot be dequantised.
    """
    weights = list(_expected_weights(gguf, dims))
    expected = {weight.source: weight.shape for weight in weights}
    known = expected.keys() | ({ROPE_FACTORS} if dims.architecture == "llama" else set())
    problems = {
        "missing": [f"'{name}' {shape}" for name, shape in expected.items() if name not in gguf.tensors],
        f"not part of a dense {dims.architecture} model": [f"'{name}'" for name in gguf.tensors if name not in known],
        "of a wrong shape": [
            f"'{name}' is {tensor.shape}, expected {expected[name]}"
            for name, tensor in gguf.tensors.items()
            if name in expected and tensor.shape != expected[name]
        ],
    }
    if found := [f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names]:
        raise CheckpointError(f"{gguf.path}: tensors do not fit the metadata; {'; '.join(found)}")
    for name, tensor in gguf.tensors.items():
        gguf.dequantise(name, np.zeros((1, tensor.row_bytes), np.uint8))
    return weights


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")


def write_safetensors(gguf: GgufFile, weights: list[Weight], path: Path, *, progress: bool) -> None:
    """Writes `weights` of `gguf` to `path`, with one stored tensor and one dequantised chunk in memory.

    Raises:
        CheckpointError: A tensor is damaged.
        OSError: `path` cannot be written.
    """
    outputs = [OutputTensor(weight.target, "bfloat16", weight.shape) for weight in weights]
    chunks = (_bf16_chunks(gguf, weight) for weight in weights)
    with path.open("wb") as file, progress_bar(outputs, enabled=progress) as bar:
        write.write_safetensors(file, outputs, chunks, bar)
        sync(file)


def _expected_weights(gguf: GgufFile, dims: Dims) -> Iterator[Weight]:
    sizes = {
        "V": dims.vocab,
        "E": dims.hidden,
        "F": dims.ffn,
        "HD": dims.num_heads * dims.head_dim,
        "KD": dims.num_kv_heads * dims.head_dim,
    }
    layer_rows = _LAYER
    interleaved: dict[str, int] = {}
    if dims.architecture == "qwen2":
        layer_rows += _QKV_BIASES
    else:
        # Stored for a rope that rotates neighbours, while Hugging Face rotates the halves of a head.
        interleaved = {"attn_q": dims.num_heads, "attn_k": dims.num_kv_heads}
        if "blk.0.attn_q.bias" in gguf.tensors:
            layer_rows += (*_QKV_BIASES, _O_BIAS)

    def weight(row: _Row, source_prefix: str = "", target_prefix: str = "") -> Weight:
        source, target, symbols = row
        shape = tuple(sizes[symbol] for symbol in symbols.split())
        heads = interleaved.get(source.split(".")[0], 0)
        return Weight(source_prefix + source, target_prefix + target, shape, heads)

    yield weight(_EMBEDDING)
    for layer in range(dims.num_layers):
        for row in layer_rows:
            yield weight(row, f"blk.{layer}.", f"model.layers.{layer}.")
    yield weight(_NORM)
    if _LM_HEAD[0] in gguf.tensors:
        yield weight(_LM_HEAD)


def _bf16_chunks(gguf: GgufFile, weight: Weight) -> Iterator[bytes]:
    rows = gguf.read(weight.source)
    order = _half_order(weight) if weight.interleaved_heads else slice(None)
    if len(weight.shape) == 1:
        yield _bf16(gguf, weight, gguf.dequantise(weight.source, rows)[0, order])
        return
    rows = rows[order]  # each row is quantised by itself, so they can change places as they are
    step = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for begin in range(0, len(rows), step):
        yield _bf16(gguf, weight, gguf.dequantise(weight.source, rows[begin : begin + step]))


def _half_order(weight: Weight) -> npt.NDArray[np.intp]:
    """Returns which rows to take, so that heads stored as (0, D/2, 1, D/2 + 1, ...) come out in order."""
    rows = np.arange(weight.shape[0]).reshape(weight.interleaved_heads, -1, 2)
    order: npt.NDArray[np.intp] = rows.swapaxes(1, 2).ravel()
    return order


def _bf16(gguf: GgufFile, weight: Weight, values: npt.NDArray[np.float32]) -> bytes:
    with np.errstate(all="ignore"):
        bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    if ((bits & 0x7F80) == 0x7F80).any():
        raise CheckpointError(f"{gguf.path}: '{weight.source}' has NaN or infinite elements; it is damaged")
    return bits.tobytes()
