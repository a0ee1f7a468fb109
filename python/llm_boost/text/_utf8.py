"""Checks of text that arrives from outside."""

from __future__ import annotations

from llm_boost.errors import LlmBoostError, RequestError


def require_utf8(text: object, where: str, error: type[LlmBoostError] = RequestError) -> str:
    """Returns `text` once it is known to be a string that UTF-8 can carry.

    Args:
        text: What a caller passed as text.
        where: The name to use in a message, for example ``"messages[2].content"``.
        error: What to raise.

    Raises:
        LlmBoostError: It is not a ``str``, or it holds a lone surrogate.

    Example:
        >>> require_utf8("déjà vu", "prompt")
        'déjà vu'
    """
    if not isinstance(text, str):
        raise error(f"{where}: expected a str, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(
            f"{where}: character {problem.start} is the lone surrogate U+{ord(text[problem.start]):04X}, "
            "expected text that UTF-8 can carry; was it decoded with errors='surrogateescape'?"
        ) from None
    return text
