"""The chat page: one document that loads nothing else, and the policy that browsers hold it to.

Its parts lie beside this file; `chat_page` puts the styles and scripts into ``index.html``. The policy allows exactly
those, by their hashes: a script that a model's answer might smuggle in does not run, and nothing is fetched but the API
of the server that the page came from.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

_PART = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')


@dataclass(frozen=True, slots=True)
class ChatPage:
    """What ``GET /`` answers.

    Attributes:
        body: The document, UTF-8.
        headers: Its content type and the headers that keep it safe.
    """

    body: bytes
    headers: Mapping[str, str]


@functools.cache
def chat_page() -> ChatPage:
    """Puts the page together.

    The page holds no secret, and asks for the API key when ``v1/models`` answers 401. It calls the API by relative
    addresses, so it works under a path prefix too.

    Example:
        >>> page = chat_page()
        >>> page.headers["Content-Type"], b"<link rel=\\"stylesheet" in page.body
        ('text/html; charset=utf-8', False)
    """
    sources: dict[str, list[str]] = {"style": [], "script": []}

    def put_in(part: re.Match[str]) -> str:
        tag, name = ("style", part[1]) if part[1] else ("script", part[2])
        text = files(__name__).joinpath(name).read_text("utf-8")
        digest = hashlib.sha256(text.encode()).digest()
        sources[tag].append(f"'sha256-{base64.b64encode(digest).decode()}'")
        return f"<{tag}>{text}</{tag}>"

    body = _PART.sub(put_in, files(__name__).joinpath("index.html").read_text("utf-8"))
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'; "
        f"style-src {' '.join(sources['style'])}; script-src {' '.join(sources['script'])}"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return ChatPage(body.encode(), MappingProxyType(headers))
