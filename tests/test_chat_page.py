"""The chat page, as a person uses it: in headless Chromium, against a server that plays a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from browser import SHIFT, Browser, find_browser
from chat_server import PATIENCE, ScriptedServer, chunk, ending

from llm_boost import Model
from llm_boost.serve.page import chat_page

PROGRAM = find_browser()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no chromium: apt-get install chromium-headless-shell")


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="module")
def running_browser() -> Iterator[Browser]:
    assert PROGRAM
    with Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    running_server.reset()
    return running_server


@pytest.fixture
def browser(server: ScriptedServer, running_browser: Browser) -> Browser:
    """The page, opened as for the first time."""
    running_browser.screen(1200, 800)
    forget = "chat.messages = [], localStorage.clear(), sessionStorage.clear()"
    running_browser.evaluate(f"if (document.querySelector('#log')) {forget}")
    running_browser.open(server.url)
    running_browser.wait_for("document.querySelector('#model').value === 'tiny'")
    running_browser.problems()
    return running_browser


def send(browser: Browser, text: str) -> None:
    browser.type(text)
    browser.press("Enter")


def wait_for_answer(browser: Browser) -> None:
    browser.wait_for("!running && document.querySelector('#messages .assistant')")


def answer_to(browser: Browser, server: ScriptedServer, text: str) -> None:
    """Lets the server answer with a text, and waits until it is shown."""
    server.script = [chunk(text), ending(1)]
    send(browser, "Go on")
    wait_for_answer(browser)


# ---- The document.


def test_the_document_is_whole_and_its_policy_strict() -> None:
    page = chat_page()
    text = page.body.decode()
    assert '<link rel="stylesheet"' not in text
    assert "src=" not in text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 3


@needs_browser
def test_nothing_but_the_api_is_fetched(browser: Browser, server: ScriptedServer) -> None:
    answer_to(browser, server, "![image](http://127.0.0.1:9/leak) and <img src='http://127.0.0.1:9/leak'>")
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [f"{server.url}v1/chat/completions"]
    assert set(server.paths) == {"/", "/v1/models"}
    assert browser.problems() == []


# ---- Sending and streaming.


@needs_browser
def test_an_answer_streams(browser: Browser, server: ScriptedServer) -> None:
    more = threading.Event()
    server.script = [chunk("The first "), more, chunk("and the second part."), ending(12)]
    send(browser, "Tell me")
    browser.wait_for("document.querySelector('.text')?.innerText === 'The first '")
    assert browser.evaluate("document.querySelector('#log').ariaBusy") == "true"
    more.set()
    wait_for_answer(browser)
    assert browser.text(".text") == "The first and the second part."
    assert browser.text(".note").startswith("12 tokens · ")
    assert "tokens/s · first after" in browser.text(".note")
    assert browser.evaluate("document.querySelector('#log').ariaBusy") == "false"
    (request,) = server.requests
    messages = [{"role": "user", "content": "Tell me"}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert request == {"model": "tiny", "messages": messages, **options}
    assert browser.problems() == []


@needs_browser
def test_events_may_be_cut_anywhere(browser: Browser, server: ScriptedServer) -> None:
    stream = b": a comment\r\n\r\n" + (chunk("née, 你好 🙂") + ending(5)).replace(b"\n", b"\r\n")
    stream = stream.replace(b"n\\u00e9e", "née".encode()).replace(b"\\u4f60\\u597d", "你好".encode())
    server.script = [stream[at : at + 1] for at in range(len(stream))]
    send(browser, "Hi")
    wait_for_answer(browser)
    assert browser.text(".text") == "née, 你好 🙂"


@needs_browser
@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop_ends_the_answer_and_keeps_its_beginning(browser: Browser, server: ScriptedServer, way: str) -> None:
    server.script = [chunk("So far"), None]
    send(browser, "Tell me")
    browser.wait_for("document.querySelector('.text')?.innerText === 'So far'")
    if way == "Escape":
        browser.press("Escape")
    else:
        browser.click("#send")
    wait_for_answer(browser)
    assert server.left.wait(PATIENCE)
    assert browser.text(".note").endswith("stopped")
    assert browser.evaluate("document.querySelector('.error').hidden")
    server.script = [chunk("Yes."), ending(2)]
    send(browser, "Go on")
    wait_for_answer(browser)
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Tell me", "So far", "Go on"]
    assert browser.problems() == []


@needs_browser
def test_keys(browser: Browser, server: ScriptedServer) -> None:
    assert browser.evaluate("document.activeElement.id") == "prompt"
    assert browser.evaluate("document.querySelector('#send').disabled")
    browser.press("Enter")  # nothing to send
    browser.type("one")
    browser.press("Enter", SHIFT)
    browser.type("two")
    ids = []
    for _ in range(7):
        browser.press("Tab")
        ids.append(browser.evaluate("document.activeElement.id"))
    assert ids[:1] == ["send"]
    browser.evaluate("document.querySelector('#prompt').focus()")
    browser.press("Enter")
    wait_for_answer(browser)
    assert server.requests[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert browser.evaluate("document.activeElement.id") == "prompt"
    assert browser.evaluate(
        "[...document.querySelectorAll('button, input, textarea, select')].every((e) =>"
        " e.innerText.trim() || e.ariaLabel || e.labels?.length)"
    )


@needs_browser
def test_enter_that_ends_a_word_of_an_input_method_does_not_send(browser: Browser, server: ScriptedServer) -> None:
    browser.type("你好")
    for composing in ("isComposing: true", "keyCode: 229"):
        event = f"new KeyboardEvent('keydown', {{key: 'Enter', {composing}, bubbles: true, cancelable: true}})"
        assert browser.evaluate(f"document.querySelector('#prompt').dispatchEvent({event})")
    assert browser.evaluate("!running && document.querySelector('#prompt').value") == "你好"


# ---- Errors.


@needs_browser
def test_a_refusal_is_shown_and_can_be_tried_again(browser: Browser, server: ScriptedServer) -> None:
    server.failure = (429, {"Retry-After": "3"}, {"error": {"message": "The queue is full."}})
    send(browser, "Hi")
    browser.wait_for("document.querySelector('.error:not([hidden])')")
    assert browser.text(".error") == "The queue is full. Try again in 3 s."
    assert browser.text("#status") == browser.text(".error")  # read out by screen readers
    server.failure = None
    browser.click(".retry")
    browser.wait_for("!running && document.querySelector('.text').innerText === 'Hello.'")
    assert browser.evaluate("document.querySelectorAll('.assistant').length") == 1
    assert [len(request["messages"]) for request in server.requests] == [1, 1]


@needs_browser
def test_messages_without_an_answer_are_joined(browser: Browser, server: ScriptedServer) -> None:
    server.failure = (500, {}, {})
    send(browser, "One")
    browser.wait_for("!running && document.querySelector('.error:not([hidden])')")
    assert browser.text(".error") == "The server answered 500 Internal Server Error."
    server.failure = None
    send(browser, "Two")
    browser.wait_for("!running && document.querySelectorAll('.assistant').length === 2")
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "One\n\nTwo"}]


@needs_browser
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([chunk("Half"), b'data: {"error": {"message": "The engine has stopped."}}\n\n'], "The engine has stopped."),
        ([chunk("Half")], "The connection broke off: the answer is not complete."),
        ([chunk("Half"), b"data: {\n\n"], "The server's answer makes no sense"),
    ],
)
def test_an_answer_that_breaks_off_says_so(
    browser: Browser, server: ScriptedServer, script: list[Any], said: str
) -> None:
    server.script = script
    send(browser, "Hi")
    browser.wait_for("document.querySelector('.error:not([hidden])')")
    assert browser.text(".error").startswith(said)
    assert browser.text(".text") == "Half"


@needs_browser
def test_the_key_is_asked_for(browser: Browser, server: ScriptedServer) -> None:
    server.key = "secret"
    browser.open(server.url)
    browser.wait_for("document.activeElement.id === 'key'")
    browser.type("secret")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#model').value === 'tiny' && document.activeElement.id === 'prompt'")
    send(browser, "Hi")
    wait_for_answer(browser)
    assert browser.text(".text") == "Hello."
    assert "secret" not in browser.evaluate("JSON.stringify(localStorage)")


@needs_browser
def test_a_server_that_is_gone(browser: Browser) -> None:
    browser.evaluate("window.fetch = () => Promise.reject(new TypeError('gone'))")
    send(browser, "Hi")
    browser.wait_for("document.querySelector('.error:not([hidden])')")
    assert browser.text(".error") == "The server does not answer. Is it running?"


# ---- What the model writes.

ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:window.hacked=1)",
    "[click](  javascript:window.hacked=1)",
    "[click](java\tscript:window.hacked=1)",
    "[click](data:text/html,<script>parent.hacked=1</script>)",
    "[click](vbscript:window.hacked=1)",
    '![x](x" onerror="window.hacked=1)',
    '[x](https://example.org/" onclick="window.hacked=1)',
    "```<script>window.hacked=1</script>\n<img src=x onerror=window.hacked=1>\n```",
    "`<img src=x onerror=window.hacked=1>`",
    "| <img src=x onerror=window.hacked=1> | b |\n|---|---|\n| <script>window.hacked=1</script> | d |",
    "# <img src=x onerror=window.hacked=1>",
    "> - **<img src=x onerror=window.hacked=1>**",
    "</div></main><script>window.hacked=1</script>",
    "<a href='javascript:window.hacked=1'>x</a>",
    "<style>*{display:none}</style><form action=//example.org><input name=q>",
    "__proto__ constructor {{7*7}} ${window.hacked=1}",
]


@needs_browser
def test_injection_is_inert(browser: Browser, server: ScriptedServer) -> None:
    answer_to(browser, server, "\n\n".join(ATTACKS))
    made = browser.evaluate(
        "[...new Set([...document.querySelectorAll('.text *')].map((e) => e.localName))].sort().join(' ')"
    )
    harmless = {"a", "blockquote", "button", "code", "div", "h2", "li", "p", "pre", "span", "strong"}
    assert set(made.split()) <= harmless | {"table", "thead", "tbody", "tr", "th", "td", "ul"}
    for address in browser.evaluate("[...document.querySelectorAll('.text a')].map((a) => a.href)"):
        assert address.startswith("https://example.org/")
    handlers = "[...document.querySelectorAll('.text *')].flatMap((e) => e.getAttributeNames())"
    assert not [name for name in browser.evaluate(handlers) if name.startswith("on")]
    browser.evaluate("document.querySelectorAll('.text a').forEach((a) => { a.target = ''; })")
    assert browser.evaluate("window.hacked") is None
    for attack in ("<script>window.hacked = 1</script>", "<svg onload=window.hacked=1>"):
        assert attack in browser.text(".text")  # it is shown as the text that it is
    # A hole in the page would still be stopped by its policy.
    assert "TrustedHTML" in browser.evaluate(
        "(() => { try { document.body.innerHTML = '<p>'; } catch (error) { return error.message; } })()"
    )
    assert browser.evaluate("(() => { try { eval('1') } catch { return 'refused' } })()") == "refused"


@needs_browser
def test_what_a_user_writes_is_text(browser: Browser, server: ScriptedServer) -> None:
    send(browser, "<b>bold</b> **bold** <img src=x onerror=window.hacked=1>")
    wait_for_answer(browser)
    assert browser.evaluate("document.querySelector('.user').lastChild.data").startswith("<b>bold</b> **bold** <img")
    browser.click("#open-chats")  # its title there
    assert browser.evaluate("document.querySelectorAll('#chat-list b, #chat-list img').length") == 0


@needs_browser
def test_code_and_tables(browser: Browser, server: ScriptedServer) -> None:
    text = "1. Run\n   ```sh\n   ls `a`\n     *\n   ```\n\n| a | b\\|c |\n|:-:|--:|\n| `1` | **2** |\n\n~~~\nnot closed"
    answer_to(browser, server, text)
    assert browser.evaluate("[...document.querySelectorAll('pre code')].map((e) => e.textContent)") == [
        "ls `a`\n  *",
        "not closed",
    ]
    assert browser.evaluate("[...document.querySelectorAll('.bar span')].map((e) => e.innerText)") == ["sh", "text"]
    cells = "[...document.querySelectorAll('th, td')].map((e) => `${e.innerText} ${e.style.textAlign}`)"
    assert browser.evaluate(cells) == ["a center", "b|c right", "1 center", "2 right"]


# ---- What is kept.


@needs_browser
def test_conversations_are_kept(browser: Browser, server: ScriptedServer) -> None:
    answer_to(browser, server, "First **answer**.")
    browser.click("#new-chat")
    assert browser.evaluate("!document.querySelector('#empty').hidden && !document.querySelector('.message')")
    answer_to(browser, server, "Second answer.")
    browser.open(server.url)
    assert browser.text(".text") == "Second answer."
    browser.click("#open-chats")
    browser.click("#chat-list .row:nth-child(2) .title")
    assert browser.text(".text") == "First answer."
    assert browser.text(".note").startswith("1 tokens")
    answer_to(browser, server, "More.")
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Go on", "First **answer**.", "Go on"]
    browser.click("#open-chats")
    browser.click("#chat-list .row:nth-child(1) .quiet")
    assert browser.evaluate("Object.keys(localStorage).filter((key) => key.startsWith(CHAT)).length") == 1
    assert not browser.evaluate("document.querySelector('#empty').hidden")


@needs_browser
def test_another_conversation_does_not_get_the_running_answer(browser: Browser, server: ScriptedServer) -> None:
    server.script = [chunk("So far"), None]
    send(browser, "Tell me")
    browser.wait_for("document.querySelector('.text')?.innerText === 'So far'")
    browser.click("#new-chat")
    browser.wait_for("!running")
    assert browser.evaluate("chat.messages.length") == 0
    assert [one["messages"][1]["content"] for one in browser.evaluate("allChats()")] == ["So far"]


@needs_browser
def test_a_full_store_loses_the_oldest(browser: Browser, server: ScriptedServer) -> None:
    for number in range(3):
        answer = f"[{{role: 'user', content: '{number}'.repeat(2e6)}}]"
        browser.evaluate(f"saveChat({{id: '{number}', changed: 0, messages: {answer}}})")
        browser.wait_for("true")  # a frame later: the order is by time
    kept = browser.evaluate("allChats().map((one) => one.id)")
    assert kept[0] == "2"
    assert "0" not in kept
    browser.evaluate("saveChat({id: '3', changed: 0, messages: [{role: 'user', content: '3'.repeat(2e7)}]})")
    assert "no room" in browser.text("#status")


@needs_browser
def test_settings_are_sent_and_kept(browser: Browser, server: ScriptedServer) -> None:
    browser.click("#open-settings")
    for field, value in {"system": "Be brief.", "temperature": "0.5", "top_k": "20", "max_tokens": "64"}.items():
        browser.evaluate(f"document.querySelector('#{field}').focus()")
        browser.type(value)
    browser.click("#settings .solid")
    browser.wait_for("document.activeElement.id === 'prompt'")
    browser.open(server.url)
    browser.wait_for("document.querySelector('#model').value === 'tiny'")
    send(browser, "Hi")
    wait_for_answer(browser)
    (request,) = server.requests
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["top_k"], request["max_tokens"]) == (0.5, 20, 64)
    assert "top_p" not in request
    browser.click("#open-settings")
    browser.click("#defaults")
    browser.evaluate("document.querySelector('#top_p').focus()")
    browser.type("7")  # more than 1
    browser.click("#settings .solid")
    assert browser.evaluate("document.querySelector('#settings').open")  # the browser points at the field
    browser.press("Escape")
    assert browser.evaluate("sampling()") == {}


# ---- The real server.


@needs_browser
def test_with_a_model(running_browser: Browser, smollm2: Model) -> None:
    pytest.importorskip("starlette")
    from serving import serving

    browser = running_browser
    with serving(smollm2) as server:
        browser.screen(1200, 800)
        browser.open(f"{server.url}/")
        browser.wait_for("document.querySelector('#model').value")
        for field, value in {"temperature": 0, "max_tokens": 12}.items():  # greedy: the same answer every time
            browser.evaluate(f"document.querySelector('#{field}').value = {value}")
        send(browser, "Say hello.")
        wait_for_answer(browser)
        assert browser.text(".error") == ""
        assert len(browser.text(".text")) > 5
        assert "tokens/s" in browser.text(".note")
        browser.evaluate("document.querySelector('#max_tokens').value = 1000")
        send(browser, "Write a long story.")
        browser.wait_for("document.querySelectorAll('.text')[1]?.innerText.length > 20")
        browser.press("Escape")
        wait_for_answer(browser)
        server.wait_until_idle()  # the blocks of the answer that was stopped are free
        send(browser, "word " * 3000)  # more than its context holds
        browser.wait_for("document.querySelector('.message:last-child .error:not([hidden])')")
        assert "2048" in browser.text(".message:last-child .error")


# ---- Looks.


@needs_browser
@pytest.mark.parametrize(("width", "height", "phone"), [(1200, 800, False), (390, 844, True), (320, 480, True)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen(
    browser: Browser, server: ScriptedServer, width: int, height: int, phone: bool, dark: bool
) -> None:
    browser.screen(width, height, phone=phone, dark=dark)
    answer_to(
        browser, server, "# A title\n\n" + "long" * 100 + "\n\n```\n" + "code " * 100 + "\n```\n\n" + "text\n\n" * 30
    )
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("document.documentElement.scrollHeight") == height
    assert browser.evaluate("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")
    assert browser.evaluate(
        "document.querySelector('#log').scrollHeight - document.querySelector('#log').scrollTop -"
        " document.querySelector('#log').clientHeight < 2"
    )  # it follows the answer
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(23, 24, 26)") == dark
    assert len(browser.screenshot()) > 5000


@needs_browser
def test_the_theme_is_chosen_and_kept(browser: Browser, server: ScriptedServer) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(colour)
    browser.click("#theme")
    dark = browser.evaluate(colour)
    assert dark != light
    browser.open(server.url)
    assert browser.evaluate(colour) == dark
    browser.screen(1200, 800, dark=True)
    browser.click("#theme")
    assert browser.evaluate(colour) == light
    assert browser.evaluate("document.querySelector('#theme').ariaLabel") == "Theme: light"
    browser.click("#theme")
    assert browser.evaluate(colour) == dark  # the system's
