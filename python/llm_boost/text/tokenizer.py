"""Text to token ids and back, from whichever tokenizer files a model directory has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from llm_boost._json import parse_json_object
from llm_boost.errors import RequestError, TokenizerError
from llm_boost.text._sentencepiece_codec import SentencePieceCodec
from llm_boost.text._tokenizer_codec import Codec, TokenizersCodec
from llm_boost.text._tokenizer_config import (
    TokenizerConfig,
    read_bytes,
    read_json_object,
    read_text,
    read_tokenizer_config,
)
from llm_boost.text._utf8 import require_utf8
from llm_boost.text.chat_template import ChatTemplate
from llm_boost.text.detokenizer import StreamDetokenizer

# How Qwen2 splits a text before it looks for tokens: contractions, words, single digits, signs, blanks.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Settings of BPE that neither Llama nor Qwen2 uses. The library aborts the process if merges do not fit them.
_WORD_PART_MARKS = ("continuing_subword_prefix", "end_of_word_suffix")
_SET_WORD_PART_MARKS = tuple(re.compile(mark.encode() + rb'(?!"\s*:\s*(?:null|""))') for mark in _WORD_PART_MARKS)


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """The tokenizer of a model. Immutable, so any thread may call; made by `load_tokenizer`.

    Attributes:
        codec: The vocabulary.
        chat: The chat templates.
        bos_token_id: Id of the token that begins a text, or None.
        eos_token_id: Id of the token that ends a text, or None. A model may have further ones in its
            generation_config.json.
        pad_token_id: Id of the token that fills up a batch, or None.
        model_max_length: Number of tokens that the tokenizer's files say the model was made for, or None.
    """

    codec: Codec
    chat: ChatTemplate
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    model_max_length: int | None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; the model's logits may have more columns.

        Raises:
            TokenizerError: tokenizer.json has a token with an id that no model has.
        """
        return self.codec.vocab_size

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which `decode` leaves out unless told otherwise."""
        return self.codec.special_ids

    @property
    def leading_spaces(self) -> int:
        """Number of spaces that encoding puts before a text, and decoding takes away."""
        return self.codec.leading_spaces

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template for ordinary chats, or None."""
        return self.chat.source

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: The text.
            add_special_tokens: Add what the model wants around a text, such as a BOS token. Chat templates
                write that themselves, so pass False for their text.
            parse_special: The text of a special token stands for that token, wherever it comes from, as in
                Hugging Face's tokenizers. False takes it as any other text.

        Raises:
            RequestError: UTF-8 cannot carry the text.
        """
        require_utf8(text, "text")
        return self.codec.encode(text, add_special_tokens=add_special_tokens, parse_special=parse_special)

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """Returns the token ids of several texts; see `encode`."""
        for index, text in enumerate(texts):
            require_utf8(text, f"texts[{index}]")
        return self.codec.encode_batch(texts, add_special_tokens=add_special_tokens, parse_special=parse_special)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of some tokens; bytes that are no UTF-8 become U+FFFD.

        Ids without a token, as models have them to round up their vocabulary, stand for nothing.

        Raises:
            RequestError: An id is negative.
        """
        stream = StreamDetokenizer(self, skip_special_tokens=skip_special_tokens)
        return stream.push(token_ids) + stream.flush()

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token as the vocabulary writes it, or None."""
        return self.codec.token_to_id(require_utf8(token, "token"))

    def id_to_token(self, token_id: int) -> str | None:
        """Returns a token as the vocabulary writes it, or None if there is no such id."""
        return self.codec.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token adds to a text; none if there is no such id.

        Raises:
            RequestError: The id is negative.
        """
        if token_id < 0:
            raise RequestError(f"token id {token_id}: expected at least 0")
        return self.codec.token_bytes(token_id)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **template_kwargs: object,
    ) -> str:
        """Returns the text of a chat, to be encoded with ``add_special_tokens=False``.

        Keyword arguments not listed become variables of the template. See `ChatTemplate.render` for the rest.
        """
        return self.chat.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            template_kwargs=template_kwargs,
        )


def has_tokenizer(directory: Path) -> bool:
    """Tells whether a model directory has a vocabulary that `load_tokenizer` would read."""
    return any((directory / name).is_file() for name in _LOADERS)


def load_tokenizer(directory: Path, overrides: Mapping[str, Any] | None = None) -> Tokenizer:
    """Loads the tokenizer of a model directory.

    The vocabulary comes from tokenizer.json, or else from tokenizer.model (as LlamaTokenizer reads it), or
    else from vocab.json and merges.txt (as Qwen2Tokenizer reads them). The roles of special tokens and the
    chat templates come from tokenizer_config.json and the files beside it. A tokenizer.json decides by itself
    what is put around a text; with the others, ``add_bos_token`` and ``add_eos_token`` do.

    Args:
        directory: The model directory. Nothing in it is executed.
        overrides: What replaces entries of tokenizer_config.json.

    Raises:
        TokenizerError: There is no vocabulary, or a file is malformed.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> letters = {chr(0x21 + n): n for n in range(94)}
        >>> backend = Backend(models.BPE(vocab=letters, merges=[]))
        >>> backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        >>> backend.decoder = decoders.ByteLevel()
        >>> backend.save(str(directory / "tokenizer.json"))
        >>> tokenizer = load_tokenizer(directory)
        >>> tokenizer.encode("AZ"), tokenizer.decode([32, 57])
        ([32, 57], 'AZ')
    """
    try:
        found = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise TokenizerError(f"{directory}: not a model directory: {error.strerror}") from error
    name = next((name for name in _LOADERS if name in found), None)
    if name is None:
        raise TokenizerError(f"{directory}: has no tokenizer: expected {' or '.join(_LOADERS)}, found {sorted(found)}")
    return load_tokenizer_file(name, directory / name, overrides=overrides)


def load_tokenizer_file(
    kind: str, path: Path, *, merges: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Loads a tokenizer from a vocabulary of any name; its settings come from the files beside it.

    Args:
        kind: What it is: "tokenizer.json", "tokenizer.model" or "vocab.json".
        path: The vocabulary.
        merges: What goes with a vocab.json; None for the merges.txt beside it.
        overrides: What replaces entries of tokenizer_config.json.

    Raises:
        TokenizerError: A file is missing or malformed.
    """
    config = read_tokenizer_config(path.parent, overrides)
    load, default_roles = _LOADERS[kind]
    roles = {role: token for role, token in {**default_roles, **config.roles}.items() if token is not None}
    codec = load(_Files(path, merges or path.with_name("merges.txt")), config, roles)

    def token_id(role: str) -> int | None:
        return codec.token_to_id(roles[role]) if role in roles else None

    return Tokenizer(
        codec=codec,
        chat=ChatTemplate(config.chat_templates, variables=roles),
        bos_token_id=token_id("bos_token"),
        eos_token_id=token_id("eos_token"),
        pad_token_id=token_id("pad_token"),
        model_max_length=config.model_max_length,
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a vocabulary is, and the merges of one that has them in a file of its own."""

    vocab: Path
    merges: Path


def _load_tokenizer_json(files: _Files, config: TokenizerConfig, roles: Mapping[str, str]) -> Codec:
    path = files.vocab
    _refuse_word_part_marks(path)
    try:
        backend = _build(lambda: Backend.from_file(str(path)), str(path))
    except TokenizerError:
        read_json_object(path)  # says more if it is not even JSON
        raise
    _add_tokens(backend, config.added_tokens, path)
    return TokenizersCodec(backend, {*roles.values(), *config.extra_special_tokens}, str(path))


def _load_sentencepiece(files: _Files, config: TokenizerConfig, roles: Mapping[str, str]) -> Codec:
    path = files.vocab
    _require_class(config, ("LlamaTokenizer", "CodeLlamaTokenizer"), path)
    return SentencePieceCodec(
        read_bytes(path),
        added_tokens=config.added_tokens,
        special_tokens={*roles.values(), *config.extra_special_tokens},
        bos=roles.get("bos_token") if config.add_bos_token is not False else None,
        eos=roles.get("eos_token") if config.add_eos_token else None,
        legacy=config.legacy,
        where=str(path),
    )


def _load_qwen2(files: _Files, config: TokenizerConfig, roles: Mapping[str, str]) -> Codec:
    path = files.vocab
    _require_class(config, ("Qwen2Tokenizer",), path)
    vocab = read_json_object(path)
    merges = _read_merges(files.merges)
    backend = _build(lambda: Backend(models.BPE(vocab=vocab, merges=merges)), f"{path} and {files.merges.name}")
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = {*roles.values(), *config.extra_special_tokens}
    if config.added_tokens:
        _add_tokens(backend, config.added_tokens, path)
    else:
        backend.add_special_tokens([AddedToken(token, special=True) for token in _QWEN2_SPECIAL_TOKENS])
    return TokenizersCodec(backend, special, str(path))


# What vocabularies come in, best first, and the special tokens that Hugging Face presumes with each.
_LOADERS: dict[str, tuple[Callable[[_Files, TokenizerConfig, Mapping[str, str]], Codec], dict[str, str]]] = {
    "tokenizer.json": (_load_tokenizer_json, {}),
    "tokenizer.model": (
        _load_sentencepiece,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "vocab.json": (
        _load_qwen2,
        {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    ),
}


def _build(make: Callable[[], Backend], where: str) -> Backend:
    """Has the library make a tokenizer and use it once.

    Raises:
        TokenizerError: It did not, or panicked, which is no `Exception`.
    """
    try:
        backend = make()
        backend.encode("a \u0378")  # an unassigned character, which needs the unknown token
        return backend
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"{where}: not a tokenizer: {error}") from error


def _refuse_word_part_marks(path: Path) -> None:
    """Apart from its caller, so that what was read is gone before the library reads the file."""
    data = read_bytes(path)
    if b"\\u" not in data and not any(mark.search(data) for mark in _SET_WORD_PART_MARKS):
        return  # no such name with a value, nor one spelt with escapes; parsing takes ten times as long as looking
    model = parse_json_object(data, str(path), TokenizerError).get("model")
    if marks := [key for key in _WORD_PART_MARKS if isinstance(model, dict) and model.get(key)]:
        raise TokenizerError(f"{path}: its model has a '{marks[0]}', which is not supported")


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        parts = line.split()
        if not parts or line.startswith("#version:"):
            continue
        if len(parts) != 2:
            raise TokenizerError(f"{path}: line {number}: expected two pieces, found {len(parts)}")
        merges.append((parts[0], parts[1]))
    return merges


def _require_class(config: TokenizerConfig, known: Sequence[str], path: Path) -> None:
    """Refuses a vocabulary that another class would read by other rules."""
    if config.tokenizer_class not in (None, *known):
        raise TokenizerError(
            f"{path}: tokenizer_config.json says {config.tokenizer_class}, expected {' or '.join(known)}; "
            "other tokenizers need a tokenizer.json, which AutoTokenizer.save_pretrained writes"
        )


def _add_tokens(backend: Backend, tokens: Mapping[int, AddedToken], path: Path) -> None:
    """Gives a tokenizer the tokens that tokenizer_config.json adds to it.

    Raises:
        TokenizerError: One of them would get another id than it should have.
    """
    known = backend.get_added_tokens_decoder()
    backend.add_tokens([token for token_id, token in sorted(tokens.items()) if token_id not in known])
    for token_id, token in tokens.items():
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(
                f"{path}: '{token.content}' is token {found}, but tokenizer_config.json says {token_id}"
            )
