"""The vocabularies that the `sentencepiece` library handles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from llm_boost.errors import TokenizerError
from llm_boost.text._tokenizer_codec import check_vocab_size

_SPACE = "▁"  # U+2581, SentencePiece's way to write a space

# A ModelProto that holds only `normalizer_spec { add_dummy_prefix: false }`. Put behind a model it overrides
# that field alone, because so protocol buffers merge.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceCodec:
    """Encodes as Hugging Face's LlamaTokenizer does; a `Codec`.

    The library knows nothing of special tokens in a text. So the text is cut at them, and what lies between
    is encoded by itself: with `legacy` as if it began a text, that is after a space, and otherwise as it is.
    """

    def __init__(
        self,
        model: bytes,
        *,
        added_tokens: Mapping[int, AddedToken],
        special_tokens: Iterable[str],
        bos: str | None,
        eos: str | None,
        legacy: bool,
        where: str,
    ) -> None:
        """Loads a model.

        Args:
            model: Content of tokenizer.model.
            added_tokens: Tokens that the model lacks, or that have rules of their own, by id.
            special_tokens: Tokens that are special, whether of the model or added.
            bos: Which of them to put before a text, or None.
            eos: Which of them to put after a text, or None.
            legacy: Explained above.
            where: File of the model, for messages.

        Raises:
            TokenizerError: The model is malformed, or a special token is nowhere to be found.
        """
        self._model, self._pieces = _load(model if legacy else model + _NO_DUMMY_PREFIX, where)
        self._legacy = legacy
        self._unknown = self._pieces[self._model.unk_id()]
        self._added = {token_id: token.content for token_id, token in added_tokens.items()}
        self._ids = {content: token_id for token_id, content in self._added.items()}
        self._rules = {token.content: token for token in added_tokens.values()}
        self._special_tokens = frozenset(special_tokens)
        special_ids = {token_id for token_id, token in added_tokens.items() if token.special}
        special_ids.add(self._model.unk_id())
        for token in self._special_tokens:
            token_id = self.token_to_id(token)
            if token_id is None:
                raise TokenizerError(f"{where}: lacks '{token}', which is configured as a special token")
            self._ids[token] = token_id
            self._rules.setdefault(token, AddedToken(token))
            special_ids.add(token_id)
        if single := [token.content for token in self._rules.values() if token.single_word]:
            raise TokenizerError(f"{where}: added tokens {single} are 'single_word', which is not supported")
        self._cut = _any_of(self._rules)
        self._before = [] if bos is None else [self._ids[bos]]
        self._after = [] if eos is None else [self._ids[eos]]
        special_ids.update(filter(self._model.is_control, range(len(self._pieces))))
        self.special_ids = frozenset(special_ids)
        largest = max([len(self._pieces), *(token_id + 1 for token_id in added_tokens)])
        self.vocab_size = check_vocab_size(largest, where)
        self.leading_spaces = int(not legacy or self._model.encode("a", out_type=str)[0].startswith(_SPACE))

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """See `Codec`."""
        ids = self._encode_text(text, parse_special) if text else []
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool, parse_special: bool) -> list[list[int]]:
        """See `Codec`."""
        return [self.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special) for text in texts]

    def token_to_id(self, token: str) -> int | None:
        """See `Codec`."""
        if token in self._ids:
            return self._ids[token]
        token_id = self._model.piece_to_id(token)  # that of the unknown token if there is no such piece
        return token_id if self._pieces[token_id] == token else None

    def id_to_token(self, token_id: int) -> str | None:
        """See `Codec`."""
        if token_id in self._added:
            return self._added[token_id]
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None

    def token_bytes(self, token_id: int) -> bytes:
        """See `Codec`."""
        if token_id in self._added:
            return self._added[token_id].encode()
        if not 0 <= token_id < len(self._pieces):
            return b""
        piece = self._pieces[token_id]
        if self._model.is_byte(token_id):
            return bytes.fromhex(piece.removeprefix("<0x").removesuffix(">"))
        return piece.replace(_SPACE, " ").encode()

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        if not self._legacy:
            text = _SPACE + text
        parts = self._cut_at_tokens(text) if parse_special else [text]
        if not self._legacy and parts[0] == _SPACE and len(parts) > 1 and parts[1] in self._special_tokens:
            parts[0] = ""  # a special token at the start needs no space before it
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._ids[part])
            elif part:
                ids += self._encode_part(part)
        return ids

    def _cut_at_tokens(self, text: str) -> list[str]:
        """Returns what alternately is text and a token, text at both ends."""
        parts = self._cut.split(text)
        for i in range(1, len(parts), 2):
            rule = self._rules[parts[i]]
            if rule.lstrip:
                parts[i - 1] = parts[i - 1].rstrip()
            if rule.rstrip:
                parts[i + 1] = parts[i + 1].lstrip()
        return parts

    def _encode_part(self, part: str) -> list[int]:
        if self._legacy or not part.startswith((_SPACE, " ")):
            return list(self._model.encode(part))
        # Without its dummy prefix the library drops a leading space, but not one that follows something.
        skip = len(self._model.encode(self._unknown))
        return list(self._model.encode(self._unknown + part)[skip:])


def _load(model: bytes, where: str) -> tuple[SentencePieceProcessor, list[str]]:
    """Returns the library's tokenizer, and its pieces by id."""
    try:
        processor = SentencePieceProcessor(model_proto=model)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except (RuntimeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{where}: not a SentencePiece model: {error}") from None
    if not pieces:
        raise TokenizerError(f"{where}: not a SentencePiece model: it has no pieces")
    return processor, pieces


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that finds the longest of some tokens; none of them if there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
