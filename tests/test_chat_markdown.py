"""The Markdown of the chat page: what models write becomes the right elements, quickly."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browser import Browser, find_browser
from chat_server import ScriptedServer

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium: apt-get install chromium-headless-shell")

LINK = 'target="_blank" rel="noopener noreferrer"'


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    assert PROGRAM
    with ScriptedServer() as server, Browser(PROGRAM) as browser:
        browser.open(server.url)
        yield browser


def rendered(page: Browser, markdown: str) -> str:
    call = f"showMarkdown({json.dumps(markdown)}, node)"
    html: str = page.evaluate(
        f"(() => {{ const node = document.createElement('div'); {call}; return node.innerHTML; }})()"
    )
    return html


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("a **b *c* d** e", "<p>a <strong>b <em>c</em> d</strong> e</p>"),
        ("*a **b** c* ~~d~~", "<p><em>a <strong>b</strong> c</em> <del>d</del></p>"),
        ("__a__ _b_", "<p><strong>a</strong> <em>b</em></p>"),
        ("2 * 3 * 4, snake_case_name, 5*6", "<p>2 * 3 * 4, snake_case_name, 5*6</p>"),
        ("**open and `open", "<p>**open and `open</p>"),
        (r"\*not\* \_this\_ `a\*b`", r"<p>*not* _this_ <code>a\*b</code></p>"),
        ("`` a`b `` and <br>", "<p><code>a`b</code> and <br></p>"),
        ("# One\ntwo\n### Three ###", "<h2>One</h2><p>two</p><h4>Three ###</h4>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n\n4. b\n   more", '<ol start="3"><li>a</li><li>b\nmore</li></ol>'),
        ("- a\n\nb", "<ul><li>a</li></ul><p>b</p>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("see https://a.b/c_d_e.", f'<p>see <a href="https://a.b/c_d_e" {LINK}>https://a.b/c_d_e</a>.</p>'),
        ("[1] and [x](mailto:a@b.c)", f'<p>[1] and <a href="mailto:a@b.c" {LINK}>x</a></p>'),
        ("[x](/relative) [y](nothing", "<p>[x](/relative) [y](nothing</p>"),
    ],
)  # fmt: skip
def test_markdown(page: Browser, markdown: str, html: str) -> None:
    assert rendered(page, markdown) == html


@pytest.mark.parametrize(
    "bait",
    [
        "*a ",
        "[",
        "[a](",
        "`",
        "``` ",
        "_a",
        "**",
        "> ",
        "- ",
        "|",
        "~~a",
        "http://",
        "\\",
        "1. ",
        "![",
        "<",
        "* _ ` [ ~~",
    ],
)
def test_no_text_is_slow(page: Browser, bait: str) -> None:
    """What is quadratic in some text takes far longer than this for as much of it."""
    took = f"""((n) => {{
        const text = {json.dumps(bait)}.repeat(n / {len(bait)}) + "](" + "*_`~", start = performance.now();
        showMarkdown(text, document.createElement("div"));
        return performance.now() - start;
    }})"""
    assert min(page.evaluate(f"{took}(100000)") for _ in range(2)) < 2000
