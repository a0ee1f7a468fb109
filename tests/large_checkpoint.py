"""A checkpoint with a tensor that MindSpore slices, which takes next to no room on the disk."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

from reference.tiny_models import TinySpec

from llm_boost.checkpoint import StoredTensor

CONFIG = TinySpec(hidden=2048, heads=2, head_dim=8, ffn=16, layers=1, vocab=(128 << 10) + 1, tie=True)
EMBEDDING = "model.tok_embeddings.embedding_weight"
EMBEDDING_BYTES = CONFIG.vocab * CONFIG.hidden * 2  # 512 MiB and a row
_LAYER = "model.layers.0."
_SHAPES = {
    EMBEDDING: (CONFIG.vocab, CONFIG.hidden),
    **{f"{_LAYER}attention.{name}.weight": (16, CONFIG.hidden) for name in ("wq", "wk", "wv")},
    f"{_LAYER}attention.wo.weight": (CONFIG.hidden, 16),
    **{f"{_LAYER}feed_forward.{name}.weight": (16, CONFIG.hidden) for name in ("w1", "w3")},
    f"{_LAYER}feed_forward.w2.weight": (CONFIG.hidden, 16),
    f"{_LAYER}attention_norm.weight": (CONFIG.hidden,),
    f"{_LAYER}ffn_norm.weight": (CONFIG.hidden,),
    "model.norm_out.weight": (CONFIG.hidden,),
}
_PIECE_BYTES = 16 << 20


def write_large_checkpoint(path: Path) -> Path:
    """Writes a MindFormers safetensors file of bfloat16 zeros, a hole on the disk, with some marks in the embedding."""
    header, end = {}, 0
    for name, shape in _SHAPES.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for mark, offset in enumerate((0, EMBEDDING_BYTES // 2 - 1, (512 << 20) - 2, EMBEDDING_BYTES - 4)):
            file.seek(8 + len(text) + offset)
            file.write(bytes([mark + 1, 2, 3, mark + 4]))
        file.truncate(8 + len(text) + end)
    return path


def checksum(tensor: StoredTensor) -> int:
    """The CRC-32 of a tensor's bytes, whatever slices they lie in."""
    found = 0
    for path, begin, num_bytes in tensor.segments:
        with open(path, "rb") as file:
            file.seek(begin)
            for position in range(0, num_bytes, _PIECE_BYTES):
                found = zlib.crc32(file.read(min(_PIECE_BYTES, num_bytes - position)), found)
    return found
