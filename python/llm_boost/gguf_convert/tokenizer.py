"""Rebuilds the Hugging Face tokenizer files of a model from the vocabulary in its GGUF metadata.

GGUF keeps the tokens with their types and their merges or scores, but only a name for the rules by which text
is split; the rules here are those of the original tokenizers. Lost is what GGUF has no room for: whether an
added token takes in the space beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llm_boost._suggest import unknown_name
from llm_boost.errors import CheckpointError
from llm_boost.gguf_convert.reader import GgufFile

_MAX_TOKEN_CHARS = 512  # real ones stay below 300; finding the merges of one takes the square of its length
_SPACE = "▁"  # a space in a SentencePiece vocabulary
_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")


class TokenType(IntEnum):
    """What GGUF says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Splitter:
    """How text is cut into the pieces inside which byte-level BPE merges.

    Attributes:
        pattern: Of a piece; None for GPT-2's.
        digits: Whether digits are cut out one by one before that.
        nfc: Whether text is brought to Unicode normal form C before that.
        whole_pieces: Whether a piece that is a token stays whole, whatever the merges would make of it.
        add_bos: Whether text starts with BOS where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_pieces: bool = False
    add_bos: bool = False


_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = Splitter()
_STARCODER = Splitter(digits=True)
_LLAMA3 = Splitter(_WORD + r"\p{N}{1,3}" + _REST, whole_pieces=True, add_bos=True)
_QWEN2 = Splitter(_WORD + r"\p{N}" + _REST, nfc=True)
_TEKKEN = Splitter(
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_pieces=True,
    add_bos=True,
)

# By the name in `tokenizer.ggml.pre`.
_SPLITTERS = {
    "deepseek-r1-qwen": _QWEN2,
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "refact": _STARCODER,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "tekken": _TEKKEN,
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        kind: ``gpt2`` for byte-level BPE, ``llama`` for SentencePiece BPE.
        tokens: By id.
        types: By id.
        roles: Ids of those of `_ROLES` that the file fills.
        add_bos: Whether text is to start with the BOS token.
        add_eos: Whether text is to end with the EOS token.
    """

    kind: str
    tokens: list[str]
    types: list[TokenType]
    roles: dict[str, int]
    add_bos: bool
    add_eos: bool

    def ids(self) -> dict[str, int]:
        """Returns the id of every token, except of the placeholders that only pad the embedding."""
        named = set(self.roles.values())
        return {
            token: index
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if index in named or kind is not TokenType.UNUSED or token != f"[PAD{index}]"
        }

    def token(self, role: str) -> str | None:
        """Returns the token in `role`, None when the file has none."""
        return self.tokens[self.roles[role]] if role in self.roles else None


def read_vocabulary(gguf: GgufFile, num_rows: int) -> Vocabulary:
    """Reads the vocabulary of a model whose embedding has `num_rows` rows.

    Raises:
        CheckpointError: The tokenizer is of a kind that is not supported, or its metadata is damaged.
    """
    kind = gguf.get("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{gguf.path}: {unknown_name('tokenizer.ggml.model', kind, ['gpt2', 'llama'])}")
    tokens = gguf.get_strings("tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= num_rows:
        raise CheckpointError(f"{gguf.path}: {len(tokens)} tokens, expected 1 to {num_rows} (rows to embed them)")
    if len(set(tokens)) != len(tokens) or max(map(len, tokens)) > _MAX_TOKEN_CHARS:
        raise CheckpointError(
            f"{gguf.path}: 'tokenizer.ggml.tokens' has equal tokens, or longer ones than {_MAX_TOKEN_CHARS}"
        )
    types = [TokenType.NORMAL] * len(tokens)
    if (raw := _numbers(gguf, "tokenizer.ggml.token_type", len(tokens))) is not None:
        if not np.isin(raw, list(TokenType)).all():
            raise CheckpointError(f"{gguf.path}: 'tokenizer.ggml.token_type' has values other than 1 to 6")
        types = [TokenType(value) for value in raw.tolist()]
    keys = {role: f"tokenizer.ggml.{role}_token_id" for role in _ROLES}
    roles = {role: gguf.get(key, int) for role, key in keys.items() if key in gguf.metadata}
    if wrong := [f"{role} {index}" for role, index in roles.items() if not 0 <= index < len(tokens)]:
        raise CheckpointError(f"{gguf.path}: not ids of any of the {len(tokens)} tokens: {', '.join(wrong)}")

    # SentencePiece models start with BOS unless the file says otherwise.
    add_bos = gguf.get("tokenizer.ggml.add_bos_token", bool, kind == "llama" or _splitter(gguf).add_bos)
    add_eos = gguf.get("tokenizer.ggml.add_eos_token", bool, False)
    if (add_bos and "bos" not in roles) or (add_eos and "eos" not in roles):
        raise CheckpointError(f"{gguf.path}: text is to begin with BOS or end with EOS, but its id is missing")
    return Vocabulary(kind, tokens, types, roles, add_bos, add_eos)


def build_tokenizer(gguf: GgufFile, vocabulary: Vocabulary) -> Tokenizer:
    """Builds the tokenizer that `gguf` describes.

    Raises:
        CheckpointError: Its merges or scores are damaged.
    """
    build = _byte_level_bpe if vocabulary.kind == "gpt2" else _sentencepiece_bpe
    tokenizer = build(gguf, vocabulary)
    named = set(vocabulary.roles.values())
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        special = index in named or kind in (TokenType.CONTROL, TokenType.UNKNOWN)
        if special or kind is TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])

    bos = ["bos"] if vocabulary.add_bos else []
    eos = ["eos"] if vocabulary.add_eos else []
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[*bos, "$A", *eos, *bos, "$B", *eos],
            special_tokens=[
                {"id": role, "ids": [vocabulary.roles[role]], "tokens": [vocabulary.token(role)]}
                for role in (*bos, *eos)
            ],
        )
    return tokenizer


def tokenizer_config(gguf: GgufFile, vocabulary: Vocabulary, max_length: int) -> dict[str, Any]:
    """Returns the contents of ``tokenizer_config.json``."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it is
        "model_max_length": max_length,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "bos_token": vocabulary.token("bos"),
        "eos_token": vocabulary.token("eos"),
        "unk_token": vocabulary.token("unknown"),
        "pad_token": vocabulary.token("padding"),
        "clean_up_tokenization_spaces": False,
    }
    template = gguf.get("tokenizer.chat_template", str, "")
    if template:
        config["chat_template"] = template
    if names := gguf.get_strings("tokenizer.chat_templates"):
        named = {"default": template} if template else {}
        named |= {name: gguf.get(f"tokenizer.chat_template.{name}", str) for name in names}
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    return config


def _byte_level_bpe(gguf: GgufFile, vocabulary: Vocabulary) -> Tokenizer:
    ids = vocabulary.ids()
    merges = []
    for merge in gguf.get_strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise CheckpointError(f"{gguf.path}: merge {merge[:40]!r} does not join two tokens to a third")
        merges.append((left, right))
    splitter = _splitter(gguf)
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=splitter.whole_pieces))
    if splitter.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if splitter.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitter.pattern:
        steps.append(pre_tokenizers.Split(Regex(splitter.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(gguf: GgufFile, vocabulary: Vocabulary) -> Tokenizer:
    unknown = vocabulary.tokens[gguf.get("tokenizer.ggml.unknown_token_id", int)]
    merges = _merges_by_score(gguf, vocabulary)
    model = models.BPE(vocabulary.ids(), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gguf.get("tokenizer.ggml.add_space_prefix", bool, True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_by_score(gguf: GgufFile, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Returns all pairs of tokens that make up a normal token, best first.

    SentencePiece joins the neighbours that give the token with the best score, the leftmost if there are
    several. Where pairs are ranked, the same comes of putting those with a long left half first.
    """
    scores = _numbers(gguf, "tokenizer.ggml.scores", len(vocabulary.tokens))
    if scores is None or not np.isfinite(scores).all():
        raise CheckpointError(f"{gguf.path}: 'tokenizer.ggml.scores' is missing or not finite")
    ids = vocabulary.ids()
    ranked = sorted(
        (-score, -cut, cut - len(token), index)
        for index, (token, kind, score) in enumerate(
            zip(vocabulary.tokens, vocabulary.types, scores.tolist(), strict=True)
        )
        if kind is TokenType.NORMAL
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    )
    if len(ranked) > 1 and ranked[0][0] == ranked[-1][0]:
        raise CheckpointError(f"{gguf.path}: 'tokenizer.ggml.scores' are all equal, so that merges have no order")
    return [(vocabulary.tokens[index][:-cut], vocabulary.tokens[index][-cut:]) for _, cut, _, index in ranked]


def _splitter(gguf: GgufFile) -> Splitter:
    name = gguf.get("tokenizer.ggml.pre", str)
    if name not in _SPLITTERS:
        raise CheckpointError(f"{gguf.path}: {unknown_name('tokenizer.ggml.pre', name, _SPLITTERS)}")
    return _SPLITTERS[name]


def _numbers(gguf: GgufFile, key: str, count: int) -> npt.NDArray[np.generic] | None:
    values = gguf.get_numbers(key)
    if values is not None and len(values) != count:
        raise CheckpointError(f"{gguf.path}: '{key}' has {len(values)} elements, expected one a token, {count}")
    return values
