"""Token ids back to text, a few at a time.

Decoding is defined once, here: the bytes of the tokens are joined and read as UTF-8, each malformed sequence
becomes one U+FFFD, and the space that a SentencePiece vocabulary puts before a text is taken away again.
`Tokenizer.decode` is this decoder fed in one go, so a stream and a whole text cannot disagree.

Objects here belong to one sequence and one thread.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_boost.errors import RequestError
from llm_boost.text._utf8 import require_utf8


class TokenTable(Protocol):
    """What decoding needs to know of a vocabulary; `Tokenizer` is one."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""

    @property
    def leading_spaces(self) -> int:
        """Number of spaces that encoding puts before a text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, not necessarily whole characters."""


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string that was met.

    Attributes:
        stop: The stop string.
        num_tokens: How many tokens had been pushed when its last character arrived.
    """

    stop: str
    num_tokens: int


class StreamDetokenizer:
    """Decodes the tokens of one sequence as they arrive, in constant amortised time per token.

    Text is returned once it is final: a character whose bytes are spread over several tokens appears with the
    last of them. Characters are code points: an emoji built from several of them may come in several pieces.

    Example:
        >>> class Bytes:
        ...     special_ids, leading_spaces = frozenset({0}), 0
        ...     def token_bytes(self, token_id: int) -> bytes:
        ...         return bytes([token_id])
        >>> stream = StreamDetokenizer(Bytes(), stop=["END"])
        >>> [stream.push([byte]) for byte in "é ENDLESS".encode()]
        ['', 'é', ' ', '', '', '', '', '', '', '']
        >>> stream.stop_match
        StopMatch(stop='END', num_tokens=6)
    """

    def __init__(
        self,
        tokenizer: TokenTable,
        *,
        skip_special_tokens: bool = True,
        continuation: bool = False,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """Starts a sequence.

        Args:
            tokenizer: The vocabulary.
            skip_special_tokens: Leave special tokens out of the text.
            continuation: The tokens go on from a prompt: their leading space belongs to the text and stays.
            stop: Strings that end the text; see `StopStringChecker`.
            include_stop_str_in_output: Keep the stop string that ended the text.
            min_tokens: Number of tokens whose text is not searched for stop strings.

        Raises:
            RequestError: A stop string is empty or not valid text.
        """
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._spaces = 0 if continuation else tokenizer.leading_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStringChecker(stop, include_stop_str_in_output=include_stop_str_in_output)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._stop_match: StopMatch | None = None

    @property
    def stop_match(self) -> StopMatch | None:
        """The stop string that ended the text, once there is one."""
        return self._stop_match

    def push(self, token_ids: Iterable[int]) -> str:
        """Adds tokens and returns the text that became final.

        Tokens after the one that completed a stop string are ignored.

        Raises:
            RequestError: A token id is negative.
        """
        text = []
        for token_id in token_ids:
            if self._stop_match is not None:
                break
            self._num_tokens += 1
            if token_id not in self._skipped:
                text.append(self._emit(self._utf8.decode(self._token_bytes(token_id))))
        return "".join(text)

    def flush(self) -> str:
        """Ends the sequence: returns what was held back, an incomplete character as U+FFFD."""
        if self._stop_match is not None:
            return ""
        return self._emit(self._utf8.decode(b"", final=True)) + self._stops.flush()

    def _emit(self, text: str) -> str:
        if self._spaces and text:
            stripped = text.lstrip(" ")
            dropped = min(self._spaces, len(text) - len(stripped))
            self._spaces = 0 if stripped else self._spaces - dropped
            text = text[dropped:]
        if self._num_tokens <= self._min_tokens:
            return text
        text = self._stops.push(text)
        if self._stops.matched is not None:
            self._stop_match = StopMatch(self._stops.matched, self._num_tokens)
        return text


class StopStringChecker:
    """Watches a text for stop strings, and holds back whatever may turn out to be the start of one.

    The stop string whose last character comes first wins, the longest one if several end there; so the result
    does not depend on how the text was cut into pieces. Time is linear in the text, whatever the strings.

    Example:
        >>> checker = StopStringChecker(["</s>"])
        >>> checker.push("1 < 2 <"), checker.push("/s"), checker.push("> and more")
        ('1 < 2 ', '', '')
        >>> checker.matched
        '</s>'
    """

    def __init__(self, stop: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        """Starts a text.

        Args:
            stop: The stop strings; may be empty.
            include_stop_str_in_output: `push` returns the stop string too, at once when it is complete.

        Raises:
            RequestError: A stop string is empty or not valid text, or `stop` is itself a string.
        """
        if isinstance(stop, str):
            raise RequestError(f"stop: expected a list of strings, found a string; write [{stop!r}]")
        for index, string in enumerate(stop):
            if not require_utf8(string, f"stop[{index}]"):
                raise RequestError(f"stop[{index}]: expected at least one character, found an empty string")
        self._matchers = [_Matcher(string) for string in stop]
        self._include = include_stop_str_in_output
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that was met, once there is one."""
        return self._matched

    def push(self, text: str) -> str:
        """Adds text and returns what can be shown; nothing any more once a stop string was met."""
        if self._matched is not None:
            return ""
        for index, char in enumerate(text):
            complete = [matcher.stop for matcher in self._matchers if matcher.advance(char)]
            if complete:
                self._matched = max(complete, key=len)
                shown = self._held + text[: index + 1]
                self._held = ""
                return shown if self._include else shown.removesuffix(self._matched)
        text = self._held + text
        ready = len(text) - max((matcher.length for matcher in self._matchers), default=0)
        self._held = text[ready:]
        return text[:ready]

    def flush(self) -> str:
        """Ends the text and returns what was held back."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """Knuth-Morris-Pratt search for one string, a character at a time."""

    __slots__ = ("_borders", "length", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0  # of the longest beginning of `stop` that the text now ends with
        self._borders = [0] * len(stop)  # [n]: of the longest proper beginning of stop[:n+1] that ends it too
        for n in range(1, len(stop)):
            self._borders[n] = self._step(self._borders[n - 1], stop[n])

    def advance(self, char: str) -> bool:
        """Takes the next character of the text; tells whether it completes the string."""
        self.length = self._step(self.length, char)
        return self.length == len(self.stop)

    def _step(self, length: int, char: str) -> int:
        while length and self.stop[length] != char:
            length = self._borders[length - 1]
        return length + (self.stop[length] == char)
