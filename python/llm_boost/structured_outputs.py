"""Output of a prescribed form: JSON, a regular expression, one of some strings, or a grammar.

The masks that say which tokens may come next are computed by the package ``llguidance``, on the thread that takes a
request's tokens from the core, while the core computes the next step of the other requests.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from llm_boost._suggest import unknown_name
from llm_boost.errors import ConfigError, RequestError, TokenizerError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llm_boost.text import Tokenizer

# As much as a schema by hand has, several times over; compiling this takes well under a second.
_MAX_GRAMMAR_CHARS = 1 << 16
_MAX_CHOICES = 1024
_CACHED_GRAMMARS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """What form the output must have; exactly one of these, under the names that vLLM uses.

    Attributes:
        json: A JSON schema, as a mapping or as text.
        json_object: True for any JSON object.
        regex: A regular expression that the whole output matches.
        choice: Strings, one of which is the output.
        grammar: A context-free grammar in the Lark variant of ``llguidance``.

    Raises:
        RequestError: None or several are given, or one has the wrong type or size.

    Example:
        >>> StructuredOutputsParams(choice=["yes", "no"]).source()
        ('regex', '(yes|no)')
    """

    json: str | Mapping[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    _source: tuple[str, str] = field(init=False, repr=False, compare=False, default=("", ""))

    def __post_init__(self) -> None:
        names = [name for name in _NAMES if getattr(self, name) not in (None, False)]
        if len(names) != 1:
            raise RequestError(
                f"structured_outputs has {', '.join(names) or 'nothing'}, expected one of {', '.join(_NAMES)}"
            )
        source = _SOURCES[names[0]](getattr(self, names[0]))
        if len(source[1]) > _MAX_GRAMMAR_CHARS:
            raise RequestError(
                f"structured_outputs.{names[0]} has {len(source[1])} characters, expected at most {_MAX_GRAMMAR_CHARS}"
            )
        object.__setattr__(self, "_source", source)

    @staticmethod
    def from_value(value: object) -> StructuredOutputsParams:
        """The parameters themselves, or made from a mapping of their fields."""
        if isinstance(value, StructuredOutputsParams):
            return value
        if not isinstance(value, Mapping):
            raise RequestError(f"structured_outputs is {value!r:.40}, expected a mapping")
        for name in value:
            if name not in _NAMES:
                raise RequestError(unknown_name("field of structured_outputs", str(name), _NAMES))
        return StructuredOutputsParams(**value)

    def source(self) -> tuple[str, str]:
        """The kind of grammar ("json", "regex" or "grammar") and its text."""
        return self._source


_NAMES = tuple(f.name for f in fields(StructuredOutputsParams) if f.init)


def _json_source(value: object) -> tuple[str, str]:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"structured_outputs.json is no JSON: {error}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(f"structured_outputs.json is {text:.40}, expected a JSON schema")
    return "json", text


def _text_source(name: str, value: object) -> tuple[str, str]:
    if not isinstance(value, str) or not value:
        raise RequestError(f"structured_outputs.{name} is {value!r:.40}, expected text")
    return name, value


def _object_source(value: object) -> tuple[str, str]:
    if value is not True:
        raise RequestError(f"structured_outputs.json_object is {value!r:.40}, expected True")
    return "json", '{"type": "object"}'


def _choice_source(value: Any) -> tuple[str, str]:
    good = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and 0 < len(value) <= _MAX_CHOICES
    if not good or not all(isinstance(item, str) and item for item in value):
        raise RequestError(f"structured_outputs.choice is {value!r:.40}, expected 1 to {_MAX_CHOICES} strings")
    return "regex", "(" + "|".join(_escape(item) for item in value) + ")"


def _escape(text: str) -> str:
    return "".join("\\" + char if char in r".^$*+?{}[]\|()/-&~#" else char for char in text)


_SOURCES: Mapping[str, Callable[[Any], tuple[str, str]]] = {
    "json": _json_source,
    "json_object": _object_source,
    "regex": lambda value: _text_source("regex", value),
    "choice": _choice_source,
    "grammar": lambda value: _text_source("grammar", value),
}


class GrammarCompiler:
    """Compiles grammars for one vocabulary, and keeps those used last. Any thread may call."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Takes the vocabulary over, which takes a moment.

        Raises:
            ConfigError: The package ``llguidance`` is missing.
            TokenizerError: The model has no token that ends a text, so nothing could tell the end of an output.
        """
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise ConfigError(
                'structured outputs need the package llguidance: pip install "llm_boost[serve]"'
            ) from error
        if not eos_token_ids:
            raise TokenizerError("structured outputs need an end-of-text token, and the model's config names none")
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, eos_token_ids[0]))
        self._mask_bytes = 4 * ((vocab_size + 31) // 32)
        self._tokenizer: LLTokenizer = LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], Grammar] = OrderedDict()

    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        """Compiles a grammar, or takes the one compiled before.

        Raises:
            RequestError: The grammar is malformed, not supported, or beyond the limits.
        """
        source = wanted.source()
        with self._lock:
            if source in self._compiled:
                self._compiled.move_to_end(source)
                return self._compiled[source]
        grammar = Grammar(_matcher(self._tokenizer, *source), self._mask_bytes)
        with self._lock:
            self._compiled[source] = grammar
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        return grammar


class _Vocabulary:
    """A tokenizer as `TokenizerWrapper` wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)


def _matcher(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    from llguidance import LLMatcher

    try:
        if kind == "json":
            grammar = LLMatcher.grammar_from_json_schema(text)
        else:
            grammar = (LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark)(text)
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        problem = matcher.get_error()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # a panic in the library is no Exception
        problem = str(error)
    if problem:
        raise RequestError(f"structured_outputs: the {kind} cannot be used: {_one_line(problem)}")
    return matcher


def _one_line(problem: str) -> str:
    return " ".join(problem.partition("<state>")[0].split())[:300]


class Grammar:
    """A compiled grammar."""

    def __init__(self, matcher: LLMatcher, mask_bytes: int) -> None:
        """Takes a matcher that has seen nothing yet, and the size of a mask."""
        self._matcher = matcher
        self._mask_bytes = mask_bytes

    def start(self) -> TokenConstraint:
        """A constraint for one sample."""
        return TokenConstraint(self._matcher.deep_copy(), self._mask_bytes)


class TokenConstraint:
    """Which tokens a sample may go on with. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, mask_bytes: int) -> None:
        """Takes a matcher of its own, and the size of a mask."""
        self._matcher = matcher
        self._mask_bytes = mask_bytes

    def mask(self) -> bytes:
        """The mask of the next token, a bit a token.

        Raises:
            RequestError: The grammar takes more work than its limits allow.
        """
        mask = self._matcher.compute_bitmask()[: self._mask_bytes]  # the library may add a bit of its own
        if self._matcher.is_error():
            raise RequestError(f"structured_outputs: {_one_line(self._matcher.get_error())}")
        return mask

    def next_mask(self, token: int) -> bytes:
        """Takes a token that the mask allowed, and gives the mask of the one after it; see `mask`."""
        self._matcher.consume_token(token)
        return self.mask()
