"""Model directories with tiny tokenizers of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"


def copy_vocabulary(directory: Path, family: str, files: dict[str, object] | None = None) -> Path:
    """Copies the vocabulary of ``"llama"`` or ``"qwen2"`` and writes JSON files beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    for source in (GOLDEN / family).iterdir():
        shutil.copy(source, directory)
    for name, content in (files or {}).items():
        (directory / name).write_text(json.dumps(content))
    return directory


def byte_level_json() -> Tokenizer:
    """Returns a byte-level BPE as Llama 3 has it: with a BOS token, and some special tokens."""
    merges = (GOLDEN / "qwen2" / "merges.txt").read_text().split("\n")[1:]
    vocab = json.loads((GOLDEN / "qwen2" / "vocab.json").read_text())
    pairs = [(left, right) for left, right in (line.split() for line in merges if line)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|bos|>", special=True), AddedToken("<｜eos｜>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", len(vocab))]
    )
    return tokenizer


def byte_fallback_json() -> Tokenizer:
    """Returns a tokenizer as Llama 2 has it in tokenizer.json: byte fallback and a leading space."""
    model = SentencePieceProcessor(model_file=str(GOLDEN / "llama" / "tokenizer.model"))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


def write_json(directory: Path, tokenizer: Tokenizer, files: dict[str, object] | None = None) -> Path:
    """Writes a tokenizer.json, and JSON files beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in (files or {}).items():
        (directory / name).write_text(json.dumps(content))
    return directory
