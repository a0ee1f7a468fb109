"""Qwen's real vocabulary, where packages that bring it and a second implementation of its rules are installed.

pip install dashscope tiktoken
"""

from __future__ import annotations

import base64
import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import GOLDEN

from llm_boost.text._tokenizer_codec import _BYTE_OF_CHAR
from llm_boost.text.tokenizer import _QWEN2_SPECIAL_TOKENS, Tokenizer, load_tokenizer

pytestmark = pytest.mark.filterwarnings("default")

CHAR_OF_BYTE = {byte: char for char, byte in _BYTE_OF_CHAR.items()}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABETS = [
    "abcdefghij XYZ", " \t\n\r\u3000\u00a0\u200b\u2028\x0b\x85", "0123456789½²٣४", "éüñçåøßÄÖ",
    "漢字你好世界天气こんにちはカタカナ한국어안녕", "🙂😀👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇨🇳", "שלוםعالمनमस्तेไทย",
    "!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`",
    "e\u0301A\u030a\u1e9b\u0323\u2126\ufb01\u212b", "\x00\x01\x7f\x80\ufffd\ufeff", "'s't're'veS'LL",
]  # fmt: skip


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """The two tokens of lower rank that make up a token: what byte pair encoding makes of it without it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [(ranks.get(left + right, ranks[token]), i) for i, (left, right) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank >= ranks[token]:
            return tuple(parts)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def written(token: bytes) -> str:
    return "".join(CHAR_OF_BYTE[byte] for byte in token)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    package = pytest.importorskip("dashscope", reason="dashscope, which brings the vocabulary, is not installed")
    lines = (Path(package.__file__).parent / "resources" / "qwen.tiktoken").read_text().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def tokenizer(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("qwen")
    merges = [merge_of(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    assert {len(merge) for merge in merges} == {2}
    lines = [" ".join(map(written, merge)) for merge in merges]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (directory / "vocab.json").write_text(json.dumps({written(token): rank for token, rank in ranks.items()}))
    return load_tokenizer(directory)


def random_text(rng: random.Random) -> str:
    words = [*_QWEN2_SPECIAL_TOKENS, "<|im", "[INST]", "def f(x):\n\treturn x", "    ", "\n\n"]
    parts = [
        rng.choice(words) if rng.random() < 0.2 else "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randrange(1, 7)))
        for _ in range(rng.randrange(1, 14))
    ]
    return rng.choice(["", " "]).join(parts)


def test_qwens_vocabulary(ranks: dict[bytes, int], tokenizer: Tokenizer) -> None:
    tiktoken: Any = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    special = {token: len(ranks) + i for i, token in enumerate(_QWEN2_SPECIAL_TOKENS)}
    reference = tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
    rng = random.Random(7)
    texts = json.loads((GOLDEN / "qwen2.json").read_text())["texts"] + [random_text(rng) for _ in range(1000)]
    for text in texts:
        normal = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text)
        assert (text, ids) == (text, reference.encode(normal, allowed_special="all"))
        assert tokenizer.decode(ids, skip_special_tokens=False) == normal
