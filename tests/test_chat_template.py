"""Chat templates: equality with Hugging Face's rendering, hostile templates, and the life of the process."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile_templates import BOMBS, ESCAPES

from llm_boost.errors import ChatTemplateError, RequestError
from llm_boost.text.chat_template import ChatTemplate, RenderLimits

GOLDEN = Path(__file__).parent / "golden"
GOLDENS = json.loads((GOLDEN / "chat_templates.json").read_text())
HELLO = [{"role": "user", "content": "Hello"}]
PARAMETERS = ("add_generation_prompt", "continue_final_message", "tools", "documents")


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatTemplate]:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, variables=GOLDENS["special_tokens"])
    yield template
    template.close()


def worker_pid(template: ChatTemplate) -> int:
    assert template._renderer is not None
    return template._renderer._process.pid


# Equality with Hugging Face


def golden_id(case: dict[str, Any]) -> str:
    return f"{case['template']}-{len(case['messages'])}-{','.join(case['arguments'])}"


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=golden_id)
def test_renders_as_hugging_face_does(chat: ChatTemplate, case: dict[str, Any]) -> None:
    source = (GOLDEN / "chat_templates" / f"{case['template']}.jinja").read_text()
    arguments = {name: value for name, value in case["arguments"].items() if name in PARAMETERS}
    extra = {name: value for name, value in case["arguments"].items() if name not in PARAMETERS}
    before = json.dumps(case["messages"])

    def render() -> str:
        return chat.render(case["messages"], **arguments, template_kwargs=extra, chat_template=source)

    if "error" in case:
        with pytest.raises(ChatTemplateError, match=re.escape(case["error"])):
            render()
    else:
        assert render() == case["text"]
    assert json.dumps(case["messages"]) == before


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"{{ 'a\n\u00e9' }}", "a\né"),
        ("{{ [1, 'a'] | pprint }}", "[1, 'a']"),
        ("{{ 'a b c' | wordwrap(3) }}", "a b\nc"),
        ("{{ '<b>a</b> &lt;' | striptags }}", "a <"),
        ("{{ lipsum(n=1) | length > 0 }}", "True"),
        ("{{ ['b', 'a'] | sort | tojson(indent=1) }}", '[\n "a",\n "b"\n]'),
        ("{{ {'é': '<'} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"é":"<"}'),
        ("{{ namespace(self=1).self }}{% set ns = namespace({'a': 2}) %}{{ ns.a }}", "12"),
    ],
)
def test_confinement_leaves_jinja_whole(chat: ChatTemplate, source: str, expected: str) -> None:
    assert chat.render(HELLO, chat_template=source) == expected


# Choice of the template, arguments


def test_choice_of_template() -> None:
    sources = {"default": "{#d#}default", "tool_use": "{#t#}tools {{ tools | length }}", "rag": "{#r#}rag"}
    template = ChatTemplate(sources)
    assert template.source == sources["default"]
    assert template.render(HELLO) == "default"
    assert template.render(HELLO, tools=[{"name": "f"}]) == "tools 1"
    assert template.render(HELLO, tools=[]) == "tools 0"
    assert template.render(HELLO, chat_template="rag") == "rag"
    assert template.render(HELLO, chat_template="{{ messages[0].role }}") == "user"
    with pytest.raises(RequestError, match=r"unknown template 'ragg'; did you mean 'rag'\?"):
        template.render(HELLO, chat_template="ragg")
    template.close()


@pytest.mark.parametrize(("templates", "found"), [({}, "neither"), ({"rag": "{{ 1 }}"}, r"\['rag'\]")])
def test_no_template(templates: dict[str, str], found: str) -> None:
    template = ChatTemplate(templates)
    assert template.source is None
    with pytest.raises(ChatTemplateError, match=f"has no chat template: .* found {found}"):
        template.render(HELLO)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": []}, "messages: expected at least one message"),
        ({"messages": ["Hello"]}, r"messages\[0\]: expected a mapping, found str"),
        ({"messages": [{"role": "user", "content": object()}]}, r"messages\[0\].content: .* found object"),
        ({"messages": [{"role": "user", "content": b"x"}]}, r"messages\[0\].content: .* found bytes"),
        (
            {"messages": [*HELLO, {"content": [{"text": "a\ud800"}]}]},
            r"\[1\].content\[0\].text: character 1 .*U\+D800",
        ),
        ({"messages": [{"\udc00": 1}]}, r"messages\[0\]: key: character 0"),
        ({"messages": [{1: 2}]}, r"messages\[0\]: key: expected a str, found int"),
        ({"messages": [{"content": nested(100)}]}, "nested more than 64 deep"),
        ({"messages": [{"content": 10**5000}]}, "not possible as JSON"),
        ({"continue_final_message": True}, "needs add_generation_prompt=False"),
        (
            {"messages": [{"role": "user"}], "continue_final_message": True, "add_generation_prompt": False},
            r"messages\[0\].content: expected text",
        ),
        ({"template_kwargs": {"messages": 1}}, "template_kwargs: messages cannot be set here"),
        ({"template_kwargs": {"enable_thinking": 1}}, "would ignore 'enable_thinking': unknown variable"),
        ({"tools": [{}]}, "would ignore 'tools'"),
        ({"documents": [{}]}, "would ignore 'documents'"),
        ({"tools": [{1}]}, r"tools\[0\]: .* found set"),
    ],
)
def test_bad_arguments(chat: ChatTemplate, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        chat.render(arguments.pop("messages", HELLO), **arguments)
    assert chat.render(HELLO) == "Hello"


def test_empty_tools_ignore_nothing(chat: ChatTemplate) -> None:
    assert chat.render(HELLO, tools=[], documents=[]) == "Hello"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "line 2: Expected an expression"),
        ("{{ 1", "line 1: unexpected end of template"),
        ("a\n\n{{ messages[0].content.x.y }}", "line 3: UndefinedError: 'str object' has no attribute 'x'"),
        ("{{ 1 | nope }}", "line 1: No filter named 'nope'"),
        ("{% include 'x' %}", "no loader"),
        ("\n{{ 1 / 0 }}", "line 2: ZeroDivisionError"),
        ("{{ raise_exception('Only ' ~ 1 ~ ' message') }}", "chat template: Only 1 message$"),
        ("{{ raise_exception('x' * 5000) }}", r"x{2000}\.\.\.$"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}", "begins with an underscore"),
        (r"{{ '\ud800' }}", "surrogates not allowed"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_errors_of_the_template(chat: ChatTemplate, source: str, message: str) -> None:
    pid = worker_pid(chat) if chat._renderer else None
    with pytest.raises(ChatTemplateError, match=message):
        chat.render(HELLO, chat_template=source)
    assert pid in (None, worker_pid(chat))  # an ordinary error costs no restart


@pytest.mark.parametrize("source", ["{{ messages[0].content[:3] }}", "{{ messages[0].content[3:] }}"])
def test_final_message_must_be_shown(chat: ChatTemplate, source: str) -> None:
    with pytest.raises(ChatTemplateError, match="does not show the end of the final message"):
        chat.render(HELLO, chat_template=source, add_generation_prompt=False, continue_final_message=True)


# Limits


def test_limits_of_size() -> None:
    limits = RenderLimits(template_chars=100, input_bytes=2000, output_chars=50)
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, limits=limits)
    assert template.render([{"content": "x" * 50}]) == "x" * 50
    with pytest.raises(ChatTemplateError, match="longer than the limit of 50 characters"):
        template.render([{"content": "x" * 51}])
    with pytest.raises(RequestError, match="bytes as JSON, expected at most 2000"):
        template.render([{"content": "x" * 2000}])
    with pytest.raises(ChatTemplateError, match="has 101 characters, expected at most 100"):
        template.render(HELLO, chat_template="{" + "x" * 100)
    template.close()


def test_large_messages_pass(chat: ChatTemplate) -> None:
    for content in ("\x01é🙂 " * 200_000, "\x01" * 2**20):  # more than the pipes hold, both ways
        assert chat.render([{"role": "user", "content": content}]) == content
    limits = RenderLimits(output_chars=2**18)
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, limits=limits)
    assert template.render([{"content": "\x01" * 2**18}]) == "\x01" * 2**18  # six times as long in a reply
    template.close()


@pytest.fixture(scope="module")
def confined() -> Iterator[ChatTemplate]:
    limits = RenderLimits(seconds=0.3, memory_bytes=200 * 2**20, output_chars=10**6)
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, limits=limits)
    yield template
    template.close()


@pytest.mark.parametrize("source", ESCAPES)
def test_no_escape(confined: ChatTemplate, tmp_path: Path, source: str) -> None:
    secret, mark = tmp_path / "secret", tmp_path / "mark"
    secret.write_text("the secret")
    source = source.replace("PATH", str(secret)).replace("MARK", str(mark))
    try:
        text = confined.render(HELLO, chat_template=source)
    except ChatTemplateError as error:
        text = str(error)
    assert not mark.exists()
    assert not re.search(r"the secret|<class|<module|<frame|<code|jinja2\.", text)
    assert greeting(confined) == "Hello"


def greeting(confined: ChatTemplate) -> str:
    """What a harmless template gives, however long a busy machine takes."""
    limits = confined._limits
    confined._limits = replace(limits, seconds=600.0)
    try:
        return confined.render(HELLO)
    finally:
        confined._limits = limits


def seconds_of_ended_processes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_bombs_end_in_time(confined: ChatTemplate, source: str) -> None:
    assert greeting(confined) == "Hello"  # the process is ready
    before = seconds_of_ended_processes()
    with pytest.raises(ChatTemplateError) as caught:
        confined.render(HELLO, chat_template=source)
    confined.close()
    # Of the processor, not of the clock: on a busy machine the process waits. The rest is for starting and ending it.
    assert seconds_of_ended_processes() - before < 0.3 + 1.2
    assert len(str(caught.value)) < 3000
    assert greeting(confined) == "Hello"


def test_every_bomb_goes_off_in_its_own_way(confined: ChatTemplate) -> None:
    def message(bomb: str) -> str:
        with pytest.raises(ChatTemplateError) as caught:
            confined.render(HELLO, chat_template=BOMBS[bomb])
        return str(caught.value)

    assert message("loop") == "the chat template ran past its limit of 0.3 s"
    assert message("string") == "the chat template needs more memory than its 200 MiB"
    assert "RecursionError" in message("macro")
    assert message("output") == "chat template: the text is longer than the limit of 1000000 characters"


# The process
