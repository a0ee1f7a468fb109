"""The process that chat templates are rendered in: what it can reach, and what becomes of it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hostile_templates import BOMBS

from llm_boost.errors import ChatTemplateError
from llm_boost.text import _template_worker, chat_template
from llm_boost.text.chat_template import ChatTemplate, RenderLimits

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatTemplate]:
    template = ChatTemplate({"default": "{{ messages[0].content }}"})
    yield template
    template.close()


def worker_pid(template: ChatTemplate) -> int:
    assert template._renderer is not None
    return template._renderer._process.pid


def run_python(code: str) -> str:
    """Runs a program in its own interpreter and returns what it prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        timeout=30,
        text=True,
    ).stdout


def wait_for_end(pid: int, seconds: float) -> bool:
    """Tells whether a process that is no child of this one ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def test_this_process_does_not_even_import_jinja() -> None:
    code = """
import sys
from llm_boost.text.chat_template import ChatTemplate
template = ChatTemplate({"default": "{{ messages[0].content }}"})
print(template._renderer, template.render([{"content": "Hello"}]), "jinja2" in sys.modules)
"""
    assert run_python(code) == "None Hello False\n"


def test_confined_process_can_open_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"""
import os, runpy, socket
worker = runpy.run_path({_template_worker.__file__!r})
worker["_confine"](2**29)
for attempt in (
    lambda: open("/etc/passwd"),
    lambda: open({str(mark)!r}, "w"),
    lambda: os.pipe(),
    lambda: socket.socket(),
    lambda: os.open("/", os.O_RDONLY),
):
    try:
        print("opened", attempt())
    except OSError:
        pass
print("status", os.system("/bin/touch {mark}") != 0)
"""
    assert run_python(code) == "status True\n"
    assert not mark.exists()


def test_only_the_time_zone_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> str:
        return datetime.now(timezone(timedelta(hours=12))).strftime("%d %b %H")

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TZ", "UTC-12")
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %H') }}"})
    hours = [now(), template.render(HELLO), now()]  # an hour may end in between
    assert hours[1] in (hours[0], hours[2])
    assert {b"-I", b"-S"} < set(Path(f"/proc/{worker_pid(template)}/cmdline").read_bytes().split(b"\0"))
    environment = Path(f"/proc/{worker_pid(template)}/environ").read_bytes()
    assert b"TZ=UTC-12" in environment
    assert b"secret" not in environment
    template.close()


def test_threads_get_their_own_answers(chat: ChatTemplate) -> None:
    wrong = []

    def run(name: str) -> None:
        for i in range(50):
            content = f"{name} {i} " * (1 + i * 20)
            if chat.render([{"role": "user", "content": content}]) != content:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def children() -> set[str]:
    """Processes whose parent this one is; /proc's own lists of children may miss some while threads end."""
    found: set[str] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(status.parent.name)
    return found


def test_nothing_is_left_behind() -> None:
    before = children()
    template = ChatTemplate(
        {"default": "{{ messages[0].content }}"}, limits=RenderLimits(seconds=0.2, memory_bytes=2**27)
    )
    assert children() <= before  # lazily started
    assert template.render(HELLO) == "Hello"
    assert len(children() - before) == 1
    for bomb in ("loop", "string"):
        with pytest.raises(ChatTemplateError):
            template.render(HELLO, chat_template=BOMBS[bomb])
        assert children() <= before  # no zombie either
    assert template.render(HELLO) == "Hello"
    template.close()
    template.close()
    assert children() <= before
    assert template.render(HELLO) == "Hello"
    del template
    assert children() <= before


def test_process_that_died_is_replaced(chat: ChatTemplate) -> None:
    chat.render(HELLO)
    pid = worker_pid(chat)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, 5)
    assert chat.render(HELLO) == "Hello"
    assert worker_pid(chat) != pid


def test_process_that_dies_at_work_is_reported(chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.render(HELLO)
    pid = worker_pid(chat)
    os.kill(pid, signal.SIGSTOP)
    renderer = chat._renderer
    assert renderer is not None
    write = renderer._write

    def write_and_kill(data: bytes, deadline: float) -> None:
        write(data, deadline)
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(renderer, "_write", write_and_kill)
    with pytest.raises(ChatTemplateError, match="ended unexpectedly, with status -9"):
        chat.render(HELLO)
    assert chat.render(HELLO) == "Hello"


def test_process_that_does_not_listen_is_given_up() -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, limits=RenderLimits(seconds=0.2))
    template.render(HELLO)
    os.kill(worker_pid(template), signal.SIGSTOP)
    with pytest.raises(ChatTemplateError, match="past its limit"):
        template.render([{"content": "x" * 10**6}])  # more than the pipe holds
    assert template.render(HELLO) == "Hello"
    template.close()


def test_idle_process_stays() -> None:
    template = ChatTemplate({"default": "{{ 1 }}"}, limits=RenderLimits(seconds=0.05))
    template.render(HELLO)
    assert not wait_for_end(worker_pid(template), 0.05 + _template_worker._GRACE_SECONDS + 0.1)
    template.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("send(b'{]')", "sent no JSON"),
        ("send(b'5')", "sent a int, expected an object"),
        ("os.write(1, b'\\xff' * 4)", "sent 4294967295 bytes, more than any reply has"),
        ("os.write(1, b'\\0')", "ended unexpectedly, with status 3"),
        ("send(b'{}'); os.read(0, 99)", "ended unexpectedly, with status 3"),
    ],
)
def test_process_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str) -> None:
    hijacked = tmp_path / "worker.py"
    head = "import os\ndef send(data): os.write(1, len(data).to_bytes(4, 'big') + data)\n"
    head += "os.read(0, 65536)\n"  # the request: who writes to a process that has ended sees that first
    hijacked.write_text(f"{head}{code}\nos._exit(3)")
    monkeypatch.setattr(chat_template, "_WORKER", hijacked)
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate({"default": "{{ 1 }}"}).render(HELLO)


def test_interrupt_is_for_the_caller(chat: ChatTemplate) -> None:
    chat.render(HELLO)
    pid = worker_pid(chat)
    os.kill(pid, signal.SIGINT)
    assert chat.render(HELLO) == "Hello"
    assert worker_pid(chat) == pid


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_idle_process_ends_with_its_parent(end: str) -> None:
    code = f"""
import os, sys
from llm_boost.text.chat_template import ChatTemplate
template = ChatTemplate({{"default": "{{{{ 1 }}}}"}})
template.render([{{"content": ""}}])
print(template._renderer._process.pid, flush=True)
{end}
"""
    assert wait_for_end(int(run_python(code)), 5)


def test_busy_process_ends_without_its_parent() -> None:
    code = f"""
import json, os
from llm_boost.text.chat_template import ChatTemplate, RenderLimits
template = ChatTemplate({{"default": "{{{{ 1 }}}}"}}, limits=RenderLimits(seconds=0.1))
template.render([{{"content": ""}}])
template._renderer._read = lambda size, deadline: os._exit(0)
print(template._renderer._process.pid, flush=True)
template.render([{{"content": ""}}], chat_template={BOMBS["loop"]!r})
"""
    assert wait_for_end(int(run_python(code)), 5)


def test_fork_gets_its_own_process() -> None:
    code = """
import os
from llm_boost.text.chat_template import ChatTemplate
template = ChatTemplate({"default": "{{ messages[0].content }}"})
template.render([{"content": "before"}])
pid = template._renderer._process.pid
child = os.fork()
if child == 0:
    assert template.render([{"content": "child"}]) == "child"
    assert template._renderer._process.pid != pid
    raise SystemExit(0)
status = os.waitpid(child, 0)[1]
print(status, template.render([{"content": "parent"}]), template._renderer._process.pid == pid)
"""
    assert run_python(code) == "0 parent True\n"


def test_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ChatTemplateError, match="cannot start '/nonexistent/python' to render"):
        ChatTemplate({"default": "{{ 1 }}"}).render(HELLO)


def test_startup_limit() -> None:
    before = children()
    template = ChatTemplate({"default": "{{ 1 }}"}, limits=RenderLimits(startup_seconds=0.0))
    with pytest.raises(ChatTemplateError, match="past its limit of 0 s") as caught:
        template.render(HELLO)
    assert children() <= before
    del caught  # until now it held what was started
