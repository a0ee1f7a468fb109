"""What `Tokenizer` asks of a vocabulary, and the vocabularies that the `tokenizers` library handles.

The library is only asked to encode. Decoding a stream needs the bytes of single tokens, which it does not
give, so those are read off the pieces of the vocabulary.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from llm_boost.errors import TokenizerError

_T = TypeVar("_T")

_MAX_VOCAB_SIZE = 2**24  # the largest in use have 2**18 tokens

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_char() -> dict[str, int]:
    """Returns GPT-2's alphabet: printable Latin-1 for itself, other bytes as characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


class Codec(Protocol):
    """A vocabulary and the rules of encoding. Immutable, so any thread may call.

    Attributes:
        special_ids: Ids of the special tokens.
        leading_spaces: Number of spaces that encoding puts before a text.
    """

    special_ids: frozenset[int]
    leading_spaces: int

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. Raises TokenizerError if `check_vocab_size` does."""

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """Returns the token ids of a text."""

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool, parse_special: bool) -> list[list[int]]:
        """Returns the token ids of several texts."""

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token as the vocabulary writes it, or None."""

    def id_to_token(self, token_id: int) -> str | None:
        """Returns a token as the vocabulary writes it, or None if there is no such id."""

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token stands for; none if there is no such id."""


def check_vocab_size(size: int, where: str) -> int:
    """Returns the size of a vocabulary. Raises TokenizerError if it is zero, or more than any model has."""
    if not 0 < size <= _MAX_VOCAB_SIZE:
        raise TokenizerError(f"{where}: {size} token ids, expected 1 to {_MAX_VOCAB_SIZE}")
    return size


class TokenizersCodec:
    """Encodes with the `tokenizers` library."""

    def __init__(self, backend: Backend, special_tokens: Iterable[str], where: str) -> None:
        """Takes over a tokenizer of the library.

        Args:
            backend: The tokenizer, with all tokens that have rules of their own.
            special_tokens: Tokens that are special, whatever `backend` says of them.
            where: Its file, for messages.

        Raises:
            TokenizerError: There are no tokens, a special token is missing, or the way back to text is of an
                unknown kind.
        """
        check_vocab_size(backend.get_vocab_size(), where)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._where = where
        self._pieces = _pieces_of(backend, where)
        added = backend.get_added_tokens_decoder()
        special_ids = {token_id for token_id, token in added.items() if token.special}
        for token in special_tokens:
            token_id = backend.token_to_id(token)
            if token_id is None:
                raise TokenizerError(f"{where}: lacks '{token}', which is configured as a special token")
            if token_id not in added:
                backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            special_ids.add(token_id)
        self.special_ids = frozenset(special_ids)
        self.leading_spaces = self._pieces.leading_spaces

    @cached_property
    def vocab_size(self) -> int:
        """See `Codec`. On demand, because the library gives the ids only with all their pieces."""
        return check_vocab_size(1 + max(self._backend.get_vocab().values()), self._where)

    @cached_property
    def _literal_backend(self) -> Backend:
        """The tokenizer that takes the text of special tokens as text. Rarely needed, so made on demand."""
        backend = copy.deepcopy(self._backend)
        backend.encode_special_tokens = True
        return backend

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """See `Codec`."""
        ids: list[int] = self._run(
            lambda backend: backend.encode(text, add_special_tokens=add_special_tokens).ids, parse_special
        )
        return ids

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool, parse_special: bool) -> list[list[int]]:
        """See `Codec`."""
        encodings = self._run(
            lambda backend: backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens),
            parse_special,
        )
        return [encoding.ids for encoding in encodings]

    def _run(self, encode: Callable[[Backend], _T], parse_special: bool) -> _T:
        try:
            return encode(self._backend if parse_special else self._literal_backend)
        except Exception as error:
            raise TokenizerError(f"{self._where}: cannot tokenize: {error}") from error

    def token_to_id(self, token: str) -> int | None:
        """See `Codec`."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """See `Codec`."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < _MAX_VOCAB_SIZE else None

    def token_bytes(self, token_id: int) -> bytes:
        """See `Codec`."""
        piece = self.id_to_token(token_id)
        return b"" if piece is None else self._pieces.to_bytes(piece)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """How the pieces of a vocabulary stand for bytes.

    Attributes:
        byte_level: Each character stands for one byte.
        replacements: Text that stands for other text.
        byte_fallback: Pieces such as ``<0x0A>`` stand for one byte.
        leading_spaces: Number of spaces that encoding puts before a text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    leading_spaces: int = 0

    def to_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(_BYTE_OF_CHAR[char] for char in piece)
            except KeyError:  # an added token, written as it is
                return piece.encode()
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.encode()


def _pieces_of(backend: Backend, where: str) -> _Pieces:
    """Reads the decoder of a tokenizer.

    Raises:
        TokenizerError: It is not one of the two that Llama and Qwen2 models use.
    """
    decoder = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        return _Pieces(byte_level=True)
    names = " ".join(str(step.get("type")) for step in steps)
    if not re.fullmatch(r"(Replace )*(ByteFallback )?Fuse( Strip)?", names):
        raise TokenizerError(
            f"{where}: its decoder is [{names}], expected [ByteLevel], or [Replace ByteFallback Fuse Strip]"
        )
    by_type = {step["type"]: step for step in steps}
    strip = by_type.get("Strip", {"content": " ", "start": 0, "stop": 0})
    if strip["content"] != " " or strip["stop"] != 0:
        raise TokenizerError(f"{where}: its decoder strips {strip}, expected leading spaces only")
    return _Pieces(
        replacements=tuple(_replacement(step, where) for step in steps if step["type"] == "Replace"),
        byte_fallback="ByteFallback" in by_type,
        leading_spaces=strip["start"],
    )


def _replacement(step: Mapping[str, Any], where: str) -> tuple[str, str]:
    if "String" not in step["pattern"]:
        raise TokenizerError(f"{where}: its decoder replaces {step['pattern']}, expected a plain string")
    return step["pattern"]["String"], step["content"]
