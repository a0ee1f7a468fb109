"""What the files beside a vocabulary say: tokenizer_config.json, and what older repositories have instead.

Every file is untrusted: sizes are capped, types are checked, nothing is executed. ``auto_map`` is not read.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken

from llm_boost._json import parse_json_object
from llm_boost.errors import TokenizerError
from llm_boost.text._utf8 import require_utf8

_MAX_FILE_BYTES = 256 * 2**20  # vocabularies of 256 k tokens come in tokenizer.json files of about 35 MB
_NO_MODEL_MAX_LENGTH = 2**31  # absurdly large lengths, such as 1e30, stand for none
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The settings of a tokenizer, from all files that hold some.

    Attributes:
        roles: Content of the special tokens with a role, by ``bos_token``, ``eos_token``, ``unk_token`` and
            ``pad_token``: None where the files set null, absent where they say nothing.
        extra_special_tokens: Content of special tokens without a role.
        added_tokens: Tokens outside the vocabulary, or with rules of their own, by id.
        add_bos_token: Whether encoding puts the BOS token first; None if the files do not say.
        add_eos_token: Whether encoding puts the EOS token last; None if the files do not say.
        legacy: SentencePiece only: a text between special tokens is encoded as if it began a text.
        model_max_length: Number of tokens the model was made for, or None.
        tokenizer_class: The class that Hugging Face would use, without ``Fast``, or None.
        chat_templates: Source of the chat templates, by name.
    """

    roles: Mapping[str, str | None]
    extra_special_tokens: tuple[str, ...]
    added_tokens: Mapping[int, AddedToken]
    add_bos_token: bool | None
    add_eos_token: bool | None
    legacy: bool
    model_max_length: int | None
    tokenizer_class: str | None
    chat_templates: Mapping[str, str]


def read_bytes(path: Path) -> bytes:
    """Reads a file.

    Raises:
        TokenizerError: It cannot be read, is not a regular file, or is larger than any tokenizer file.
    """
    try:
        if not path.is_file():
            raise TokenizerError(f"{path}: expected a regular file")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: expected at most {_MAX_FILE_BYTES >> 20} MiB")
    return data


def read_text(path: Path) -> str:
    """Reads a UTF-8 file.

    Raises:
        TokenizerError: It cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        TokenizerError: It cannot be read, or holds something else.
    """
    return parse_json_object(read_bytes(path), str(path), TokenizerError)


def read_tokenizer_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> TokenizerConfig:
    """Reads all settings in a model directory; every file may be missing.

    Args:
        directory: The model directory.
        overrides: What replaces entries of tokenizer_config.json, and of the files that go before it.

    Raises:
        TokenizerError: A file is malformed.
    """
    path = directory / "tokenizer_config.json"
    config = read_json_object(path) if path.exists() else {}
    if "added_tokens_decoder" not in config:
        # As Hugging Face does it: these files are older, and count only where the newer entry is missing.
        config |= _read_optional(directory / "special_tokens_map.json")
    config |= overrides or {}
    roles = {
        role: None if config[role] is None else _content(config[role], f"{path}: {role}")
        for role in _ROLES
        if role in config
    }
    extra = _extra_special_tokens(config, str(path))
    if "added_tokens_decoder" in config:
        added = _added_tokens_decoder(config["added_tokens_decoder"], f"{path}: added_tokens_decoder")
    else:
        added = _added_tokens(directory / "added_tokens.json", {*roles.values(), *extra})
    class_name = _optional(config, "tokenizer_class", str, path)
    return TokenizerConfig(
        roles=roles,
        extra_special_tokens=extra,
        added_tokens=added,
        add_bos_token=_optional(config, "add_bos_token", bool, path),
        add_eos_token=_optional(config, "add_eos_token", bool, path),
        legacy=_optional(config, "legacy", bool, path) is not False,
        model_max_length=_model_max_length(config, path),
        tokenizer_class=None if class_name is None else class_name.removesuffix("Fast"),
        chat_templates=_chat_templates(config, directory, use_files="chat_template" not in (overrides or {})),
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _expect(value: object, kind: type[_T], where: str) -> _T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TokenizerError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _optional(config: Mapping[str, Any], key: str, kind: type[_T], path: Path) -> _T | None:
    value = config.get(key)
    return None if value is None else _expect(value, kind, f"{path}: {key}")


def _content(token: object, where: str) -> str:
    """Returns the text of a token, which files write as a string or as an object with flags."""
    content = token.get("content") if isinstance(token, dict) else token
    if not content:
        raise TokenizerError(f"{where}: expected the text of a token, found {content!r}")
    return require_utf8(content, where, TokenizerError)


def _extra_special_tokens(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(key) or []
        if isinstance(tokens, dict):
            tokens = list(tokens.values())
        found += (_content(token, f"{where}: {key}") for token in _expect(tokens, list, f"{where}: {key}"))
    return tuple(dict.fromkeys(found))


def _added_tokens_decoder(entries: object, where: str) -> dict[int, AddedToken]:
    added = {}
    for key, entry in _expect(entries, dict, where).items():
        if not key.isdecimal():
            raise TokenizerError(f"{where}: expected token ids as keys, found '{key}'")
        flags = _expect(entry, dict, f"{where}['{key}']")
        added[int(key)] = AddedToken(
            _content(flags, f"{where}['{key}']"),
            **{
                flag: _expect(flags.get(flag, False), bool, f"{where}['{key}'].{flag}")
                for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
            },
        )
    return added


def _added_tokens(path: Path, special: Container[str | None]) -> dict[int, AddedToken]:
    """Reads added_tokens.json, which maps content to id."""
    added = {}
    for content, token_id in _read_optional(path).items():
        token = AddedToken(_content(content, str(path)), normalized=content not in special)
        added[_expect(token_id, int, f"{path}: '{content}'")] = token
    return added


def _model_max_length(config: Mapping[str, Any], path: Path) -> int | None:
    length = config.get("model_max_length")
    if isinstance(length, float) and length >= _NO_MODEL_MAX_LENGTH:
        return None
    length = _optional(config, "model_max_length", int, path)
    return None if length is None or length >= _NO_MODEL_MAX_LENGTH else length


def _chat_templates(config: Mapping[str, Any], directory: Path, *, use_files: bool) -> dict[str, str]:
    """Returns the chat templates by name; files count before the entry in the config."""
    default = directory / "chat_template.jinja"
    files = {"default": default} if default.exists() else {}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if files and use_files:
        return {name: read_text(path) for name, path in files.items()}
    where = f"{directory / 'tokenizer_config.json'}: chat_template"
    entry = config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": require_utf8(entry, where, TokenizerError)}
    templates = {}
    for item in _expect(entry, list, where):
        named = _expect(item, dict, where)
        name = require_utf8(named.get("name"), f"{where}: name", TokenizerError)
        templates[name] = require_utf8(named.get("template"), f"{where}: {name}", TokenizerError)
    return templates
