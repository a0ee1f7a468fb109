"""The process that renders chat templates; `chat_template` starts it, nothing imports it.

A chat template is a program that comes with a model, so it is not trusted. Jinja's sandbox keeps it away from
Python. This process keeps it away from everything else, and can be killed: it can open no file, socket or
program, its environment is empty but for the time zone, and its memory and time are limited.

Requests and replies are JSON objects in frames on standard input and output. A frame is a length, 4 bytes
with the highest first, and that many bytes.

- The first request is ``{"memory_bytes"}``, its reply ``{"ready"}``.
- All others are ``{"template", "context", "required", "seconds", "output_chars"}``, where ``required`` names
  the variables in ``context`` that the template must read. Their replies are ``{"text"}``, or ``{"error"}``,
  or ``{"unread", "reads"}``, or ``{"out_of_memory"}``.

It runs under ``python -I -S``: nothing of llm_boost can be imported here.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from types import TracebackType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

# The caller ends a render that takes too long. This much later the process ends itself: the caller is gone.
_GRACE_SECONDS = 1.0

_MESSAGE_CHARS = 2000

# Jinja imports these when a template first needs them. By then no file can be opened.
_LATE_IMPORTS = ("encodings.unicode_escape", "html", "jinja2.constants", "jinja2.debug", "textwrap")

# What code in the sandbox can raise. Anything else is a surprise and ends the process.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _PlainError(jinja2.TemplateError):
    """An error whose text says it all, such as one that the template raises itself."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` to ``{% endgeneration %}``, which mark text for training: renders what is between.

    As in Hugging Face's rendering it is a scope: what is set inside is not seen outside.
    """

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without the attributes that mean something to Python."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} begins with an underscore")
        super().__setitem__(name, value)


class _Dict:
    """``dict`` as a function only: a template has no use for the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise _PlainError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_environment() -> jinja2.Environment:
    """Returns the environment that Hugging Face renders chat templates in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "dict": _Dict(),
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment


_ENVIRONMENT = _make_environment()


@lru_cache(maxsize=16)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """Returns a template and the names of the variables that it reads."""
    reads = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
    return _ENVIRONMENT.from_string(source), frozenset(reads)


def _render(request: dict[str, Any]) -> dict[str, object]:
    """Returns the reply to a request."""
    try:
        template, reads = _compile(request["template"])
        if unread := sorted(set(request["required"]) - reads):
            return {"unread": unread, "reads": sorted(reads)}
        return {"text": _collect(template, request["context"], request["output_chars"])}
    except MemoryError:
        return {"out_of_memory": True}
    except _PlainError as error:
        return _failure(str(error))
    except jinja2.TemplateSyntaxError as error:
        return _failure(f"line {error.lineno}: {error.message}")
    except _TEMPLATE_FAILURES as error:
        return _failure(f"{_where(error)}{type(error).__name__}: {error}")


def _failure(message: str) -> dict[str, object]:
    if len(message) > _MESSAGE_CHARS:
        message = f"{message[:_MESSAGE_CHARS]}..."
    return {"error": message}


def _collect(template: jinja2.Template, context: dict[str, object], limit: int) -> str:
    pieces = []
    size = 0
    for piece in template.generate(context):
        size += len(piece)
        if size > limit:
            raise _PlainError(f"the text is longer than the limit of {limit} characters")
        pieces.append(piece)
    text = "".join(pieces)
    text.encode()  # raises where the template wrote a lone surrogate
    return text


def _where(error: BaseException) -> str:
    """Returns where in the template an error was raised, as the beginning of a message."""
    line = None
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        # Jinja marks the frames that it has translated to lines of the template.
        if "__jinja_exception__" in traceback.tb_frame.f_globals:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f"line {line}: "


def _confine(memory_bytes: int) -> None:
    """Gives up everything that rendering does not need, for good."""
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    time.tzset()  # reads the time zone, which strftime_now needs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, which may have more to render
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # those open stay open: the two pipes
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _send(message: dict[str, object]) -> None:
    frame = json.dumps(message, ensure_ascii=False).encode(errors="replace")
    sys.stdout.buffer.write(struct.pack(">I", len(frame)) + frame)
    sys.stdout.buffer.flush()


def _receive() -> dict[str, Any] | None:
    """Returns the next request, or None when the caller is gone."""
    header = sys.stdin.buffer.read(4)
    if len(header) < 4:
        return None
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read(struct.unpack(">I", header)[0]))
    return request


def main() -> None:
    """Renders until standard input ends."""
    options = _receive()
    if options is None:
        return
    _confine(options["memory_bytes"])
    _send({"ready": True})
    while (request := _receive()) is not None:
        # No handler: the kernel ends the process even inside a long computation in C.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + _GRACE_SECONDS)
        reply = _render(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(reply)


if __name__ == "__main__":
    main()
