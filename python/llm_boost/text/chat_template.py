"""Chat templates: from messages to the text of a prompt, as Hugging Face renders them.

A template is a program that comes with a model. This process never evaluates it: a second one does (see
`_template_worker`), which is started when first needed, kept, limited, and killed when it takes too long.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llm_boost._suggest import unknown_name
from llm_boost.errors import ChatTemplateError, RequestError
from llm_boost.text._utf8 import require_utf8

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")

# Names that a message's reasoning goes by. Templates read the first, some of them the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

# Shows where the final message ends in the rendered text; its space, whether the template trims messages.
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

_MAX_DEPTH = 64  # of nested JSON; tool schemas in the wild stay below 20

_WORKER = Path(__file__).with_name("_template_worker.py")
_BOOTSTRAP = "import runpy, sys; sys.path += sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What rendering one chat may take.

    Attributes:
        seconds: Time for one render, once the rendering process is ready. Ordinary ones take milliseconds.
        startup_seconds: Time for the rendering process to become ready.
        memory_bytes: Address space of the rendering process, about 25 MiB of which is Python.
        template_chars: Length of a template; those in use have up to 30,000 characters.
        input_bytes: Messages, tools and so on, as JSON.
        output_chars: Length of the rendered text.
    """

    seconds: float = 2.0
    startup_seconds: float = 30.0
    memory_bytes: int = 512 * 2**20
    template_chars: int = 2**18
    input_bytes: int = 2**24
    output_chars: int = 2**22


class ChatTemplate:
    """The chat templates of one model. Any thread may call; renders take turns.

    Example:
        >>> source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        >>> template = ChatTemplate({"default": source})
        >>> template.render([{"role": "user", "content": "Hello"}])
        '[user] Hello'
        >>> template.close()
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        variables: Mapping[str, str] | None = None,
        limits: RenderLimits | None = None,
    ) -> None:
        """Takes the templates; nothing is started yet.

        Args:
            templates: Source by name. ``default`` is for ordinary chats, ``tool_use`` for those with tools.
            variables: Further variables that templates see, such as ``bos_token``.
            limits: What a render may take.
        """
        self._templates = dict(templates)
        self._variables = dict(variables or {})
        self._limits = limits or RenderLimits()
        self._lock = threading.Lock()
        self._renderer: _Renderer | None = None

    @property
    def source(self) -> str | None:
        """The template for ordinary chats, or None if there is none."""
        return self._templates.get("default")

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """Renders a chat.

        Special tokens are part of the text, so encode it with ``add_special_tokens=False``. Text of special
        tokens in a message is not told apart from the template's own.

        Args:
            messages: The chat, each message a mapping such as ``{"role": "user", "content": "Hello"}``.
                Entries that are None count as absent.
            tools: JSON schemas of functions that the model may call.
            documents: Texts for the model to draw on.
            add_generation_prompt: End with what opens the assistant's next message.
            continue_final_message: Leave the final message open, for the model to go on with. Excludes
                `add_generation_prompt`.
            chat_template: Name or source of the template to use instead of the model's choice.
            template_kwargs: Further variables for the template.

        Raises:
            RequestError: An argument cannot be used, or the template would ignore it.
            ChatTemplateError: There is no template, or it is wrong, refuses the chat, or exceeds a limit.
        """
        if not messages:
            raise RequestError("messages: expected at least one message, found none")
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message goes on with the final message: it needs add_generation_prompt=False"
            )
        extra = dict(template_kwargs or {})
        if taken := sorted(extra.keys() & set(_RESERVED)):
            raise RequestError(f"template_kwargs: {', '.join(taken)} cannot be set here: use the parameter")
        source = self._choose(chat_template, has_tools=tools is not None)
        chat = [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
        final_text = _mark_final_message(chat) if continue_final_message else None
        request = {
            "template": source,
            "context": {
                **self._variables,
                **_plain_mapping(extra, "template_kwargs"),
                "messages": chat,
                "tools": _plain(tools, "tools"),
                "documents": _plain(documents, "documents"),
                "add_generation_prompt": add_generation_prompt,
            },
            "required": [*extra, *(["tools"] if tools else []), *(["documents"] if documents else [])],
            "seconds": self._limits.seconds,
            "output_chars": self._limits.output_chars,
        }
        text = _text_of(self._exchange(request))
        return text if final_text is None else _cut_at_mark(text, final_text)

    def close(self) -> None:
        """Ends the rendering process, if one runs; a later render starts another."""
        with self._lock:
            self._end_renderer()

    def _choose(self, chat_template: str | None, *, has_tools: bool) -> str:
        """Returns the source of the template to use."""
        if chat_template is None:
            chat_template = "tool_use" if has_tools and "tool_use" in self._templates else "default"
            if chat_template not in self._templates:
                raise ChatTemplateError(
                    "this model has no chat template: expected 'chat_template' in tokenizer_config.json or a "
                    f"file chat_template.jinja, found {sorted(self._templates) or 'neither'}; pass "
                    "chat_template=..., or a prompt instead of messages"
                )
        source = self._templates.get(chat_template, chat_template)
        if "{" not in source:
            raise RequestError(f"chat_template: {unknown_name('template', source, self._templates)}")
        if len(source) > self._limits.template_chars:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters, expected at most {self._limits.template_chars}"
            )
        return require_utf8(source, "chat_template")

    def _exchange(self, request: Mapping[str, object]) -> dict[str, Any]:
        try:
            frame = json.dumps(request, ensure_ascii=False).encode()
        except ValueError as error:  # an integer of thousands of digits
            raise RequestError(f"messages: not possible as JSON: {error}") from None
        if len(frame) > self._limits.input_bytes:
            raise RequestError(f"messages: {len(frame)} bytes as JSON, expected at most {self._limits.input_bytes}")
        with self._lock:
            if self._renderer is None or not self._renderer.is_usable():
                self._end_renderer()
                self._renderer = _Renderer(self._limits)
            try:
                reply = self._renderer.exchange(frame, self._limits.seconds)
            except BaseException:
                self._end_renderer()
                raise
            if "out_of_memory" in reply:
                # What the template left behind may still fill the memory.
                self._end_renderer()
                raise ChatTemplateError(
                    f"the chat template needs more memory than its {self._limits.memory_bytes >> 20} MiB"
                )
        return reply

    def _end_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.end()
            self._renderer = None


class _Renderer:
    """A rendering process. One thread at a time; after an exception it is out of step and must be ended."""

    def __init__(self, limits: RenderLimits) -> None:
        self._max_reply = 6 * limits.output_chars + 2**16  # JSON may escape a character as \uXXXX
        self._process = _start_process()
        self.end = weakref.finalize(self, _end_process, self._process)
        self._requests, self._replies = (pipe.fileno() for pipe in _pipes(self._process))
        os.set_blocking(self._requests, False)  # a write takes what fits, and `poll` tells when more does
        try:
            self.exchange(json.dumps({"memory_bytes": limits.memory_bytes}).encode(), limits.startup_seconds)
        except BaseException:
            self.end()
            raise

    def is_usable(self) -> bool:
        """Tells whether the process still runs and is a child of this one, which in a fork it is not."""
        return self._process.poll() is None

    def exchange(self, frame: bytes, seconds: float) -> dict[str, Any]:
        """Sends a request and returns the reply to it.

        Raises:
            ChatTemplateError: It took more than `seconds`, or the process ended.
        """
        deadline = time.monotonic() + seconds
        try:
            self._write(struct.pack(">I", len(frame)) + frame, deadline)
            (length,) = struct.unpack(">I", self._read(4, deadline))
            if length > self._max_reply:
                raise ChatTemplateError(f"the rendering process sent {length} bytes, more than any reply has")
            reply = json.loads(self._read(length, deadline))
        except TimeoutError:
            raise ChatTemplateError(f"the chat template ran past its limit of {seconds:g} s") from None
        except (BrokenPipeError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)  # its pipes close a moment before it has a status
            raise ChatTemplateError(
                f"the rendering process ended unexpectedly, with status {self._process.returncode}"
            ) from None
        except ValueError as error:
            raise ChatTemplateError(f"the rendering process sent no JSON: {error}") from None
        if not isinstance(reply, dict):
            raise ChatTemplateError(f"the rendering process sent a {type(reply).__name__}, expected an object")
        return reply

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._requests, select.POLLOUT, deadline)
            view = view[os.write(self._requests, view) :]

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait(self._replies, select.POLLIN, deadline)
            part = os.read(self._replies, size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def _wait(pipe: int, event: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(pipe, event)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _start_process() -> subprocess.Popen[bytes]:
    # Without site-packages on its path the process imports only the standard library and these two.
    packages = dict.fromkeys(_install_folder(name) for name in ("jinja2", "markupsafe"))
    # The loader may need LD_LIBRARY_PATH to start Python. Secrets in the environment stay here.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
    try:
        return subprocess.Popen(  # noqa: S603 (nothing in the command comes from outside)
            [sys.executable, "-I", "-S", "-B", "-c", _BOOTSTRAP, str(_WORKER), *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=environment,
        )
    except OSError as error:
        raise ChatTemplateError(f"cannot start '{sys.executable}' to render: {error}") from error


def _install_folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ChatTemplateError(f"chat templates need the package '{package}', which is not installed")
    return str(Path(spec.origin).parents[1])


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends and reaps a process. In a fork of its parent it is no child, and only its pipes are closed."""
    for pipe in _pipes(process):
        pipe.close()
    process.kill()
    process.wait()


def _text_of(reply: Mapping[str, Any]) -> str:
    """Returns the text in a reply.

    Raises:
        ChatTemplateError: The template failed.
        RequestError: The template would have ignored an argument.
    """
    if "error" in reply:
        raise ChatTemplateError(f"chat template: {reply['error']}")
    if "unread" in reply:
        name = reply["unread"][0]
        raise RequestError(f"the chat template would ignore '{name}': {unknown_name('variable', name, reply['reads'])}")
    text: str = reply["text"]
    return text


def _plain_message(message: object, where: str) -> dict[str, Any]:
    """Returns a message as templates see it."""
    if not isinstance(message, Mapping):
        raise RequestError(f"{where}: expected a mapping, found {type(message).__name__}")
    plain = {key: value for key, value in _plain_mapping(message, where).items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING_FIELDS if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain_mapping(value: Mapping[Any, object], where: str, depth: int = 0) -> dict[str, object]:
    return {
        require_utf8(key, f"{where}: key"): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()
    }


def _plain(value: object, where: str, depth: int = 0) -> object:
    """Returns a copy of `value` made of JSON types.

    Raises:
        RequestError: JSON cannot hold it.
    """
    if depth > _MAX_DEPTH:
        raise RequestError(f"{where}: nested more than {_MAX_DEPTH} deep")
    if isinstance(value, str):
        return require_utf8(value, where)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, where, depth)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise RequestError(f"{where}: expected what JSON can hold, found {type(value).__name__}")


def _mark_final_message(messages: Sequence[dict[str, Any]]) -> str:
    """Marks the end of the final message's text, in place, and returns the text."""
    final = messages[-1]
    content = final.get("content")
    where = f"messages[{len(messages) - 1}].content"
    if isinstance(content, str):
        final["content"] = content + _END_MARK
        return content
    if isinstance(content, list):
        for block in reversed(content):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] = text + _END_MARK
                return text
    raise RequestError(f"{where}: expected text for continue_final_message to continue, found none")


def _cut_at_mark(rendered: str, final_text: str) -> str:
    """Returns the rendered text up to the mark that `_mark_final_message` left."""
    start = rendered.rfind(_END_MARK.strip())
    if start < 0 or final_text.strip() not in rendered:
        raise ChatTemplateError("continue_final_message: the chat template does not show the end of the final message")
    if rendered.startswith(_END_MARK, start):
        return rendered[:start]
    return rendered[:start].rstrip()  # the template trims messages, so it would have trimmed this one
