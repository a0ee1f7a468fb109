"""Streaming: whole characters only, which add up to the whole text, and never part of a stop string."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import byte_fallback_json, byte_level_json, copy_vocabulary, write_json
from tokenizers import Tokenizer as Backend

from llm_boost.errors import RequestError
from llm_boost.text.detokenizer import StopMatch, StopStringChecker, StreamDetokenizer
from llm_boost.text.tokenizer import Tokenizer, load_tokenizer

KINDS = ("byte level", "byte fallback", "llama", "llama not legacy", "qwen2")
HARD = "敏捷的棕色狐狸 안녕 नमस्ते 👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇨🇳 e\u0301 \ufffd\u200b\u2028 \x00\x7f ▁▁ <0x41>  the dog  \n\t"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    not_legacy = {"tokenizer_config.json": {"legacy": False}}
    directories = (
        write_json(root / "level", byte_level_json()),
        write_json(root / "fallback", byte_fallback_json()),
        copy_vocabulary(root / "llama", "llama"),
        copy_vocabulary(root / "not legacy", "llama", not_legacy),
        copy_vocabulary(root / "qwen2", "qwen2"),
    )
    return {kind: load_tokenizer(path) for kind, path in zip(KINDS, directories, strict=True)}


def characters() -> st.SearchStrategy[str]:
    """Text over all of Unicode, much of it from where tokens, spaces and combinations are."""
    return st.text(st.one_of(st.sampled_from(HARD), st.characters(codec="utf-8")))


def cut(items: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Cuts a list into parts of the given sizes, used over and over."""
    start = 0
    for size in sizes * (len(items) + 1):
        if start < len(items):
            yield items[start : start + size]
            start += size


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


# Decoding


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(characters(), min_size=4, max_size=8), sizes=sizes)
def test_pieces_of_texts(tokenizers: dict[str, Tokenizer], kind: str, texts: list[str], sizes: list[int]) -> None:
    for text in texts:
        check_pieces(tokenizers[kind], kind, text, sizes)


def check_pieces(tokenizer: Tokenizer, kind: str, text: str, sizes: list[int]) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    stream = StreamDetokenizer(tokenizer)
    shown = ""
    pushed: list[int] = []
    for part in cut(ids, sizes):
        shown += stream.push(part)
        pushed += part
        read = b"".join(tokenizer.token_bytes(i) for i in pushed if i not in tokenizer.special_ids)
        complete = read.decode("utf-8", "ignore")  # all but the beginning of a character
        assert shown == complete[tokenizer.leading_spaces if complete.startswith(" ") else 0 :]
    assert stream.flush() == ""
    assert shown == tokenizer.decode(ids)
    if kind == "qwen2":
        assert tokenizer.encode(shown, parse_special=False) == ids  # it normalizes, so only this comes back
    elif kind == "byte level":
        assert shown == text
    else:
        assert shown == text.replace("▁", " ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=sizes)
def test_pieces_of_any_tokens(
    tokenizers: dict[str, Tokenizer], kind: str, skip: bool, data: st.DataObject, sizes: list[int]
) -> None:
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5)))
    stream = StreamDetokenizer(tokenizer, skip_special_tokens=skip)
    shown = "".join(stream.push(part) for part in cut(ids, sizes)) + stream.flush()
    assert shown == tokenizer.decode(ids, skip_special_tokens=skip)
    if kind in ("byte level", "qwen2"):
        backend: Backend = tokenizer.codec._backend  # type: ignore[attr-defined]
        assert shown == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_as_soon_as_it_is_whole(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("漢漢", add_special_tokens=False)[-6:]  # three bytes each, none of them in a merge
    assert all(len(tokenizer.token_bytes(i)) == 1 for i in ids)
    stream = StreamDetokenizer(tokenizer)
    assert [stream.push([i]) for i in ids] == ["", "", "漢", "", "", "漢"]


def test_malformed_bytes(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]

    def byte(value: int) -> int:
        token_id = tokenizer.token_to_id(f"<0x{value:02X}>")
        assert token_id is not None
        return token_id

    stream = StreamDetokenizer(tokenizer)
    assert stream.push([byte(0xE6), byte(0xBC)]) == ""
    assert stream.push([byte(0x41)]) == "\ufffdA"  # one for the character that broke off
    assert stream.push([byte(0xFF), byte(0xEF), byte(0xBF), byte(0xBD)]) == "\ufffd\ufffd"  # one was meant
    assert stream.push([byte(0xF0), byte(0x9F)]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    ids = tokenizer.encode("<|bos|>a<｜eos｜><tool call>b")
    assert tokenizer.decode(ids) == "a<tool call>b"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|bos|><|bos|>a<｜eos｜><tool call>b"


@pytest.mark.parametrize("kind", ["byte fallback", "llama", "llama not legacy"])
def test_leading_space(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("  the", add_special_tokens=False)
    bos = tokenizer.token_to_id("<s>")
    assert bos is not None
    assert tokenizer.decode([bos, *ids]) == "  the"
    assert tokenizer.decode([bos, *ids], skip_special_tokens=False) == "<s>   the"
    stream = StreamDetokenizer(tokenizer, continuation=True)
    assert stream.push(ids) + stream.flush() == "   the"


def test_several_leading_spaces() -> None:
    class Letters:
        special_ids: frozenset[int] = frozenset()
        leading_spaces = 2

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([token_id])

    for text, shown in [("   x", " x"), (" x  y", "x  y"), ("x", "x"), ("   ", " "), (" ", "")]:
        stream = StreamDetokenizer(Letters())
        assert "".join(stream.push([byte]) for byte in text.encode()) + stream.flush() == shown
        assert StreamDetokenizer(Letters()).push(text.encode()) == shown


def test_ids_without_a_token(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        assert tokenizer.decode([tokenizer.vocab_size, 2**40]) == ""
        with pytest.raises(RequestError, match="token id -1: expected at least 0"):
            StreamDetokenizer(tokenizer).push([-1])


# Stop strings


def brute_force(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Returns what is shown of a text in the end, and the stop string that ended it."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            stop = max(met, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def may_begin_a_stop(text: str, stops: list[str]) -> int:
    """Returns the length of the longest end of a text that is a beginning of a stop string."""
    return max(n for n in range(len(text) + 1) if n == 0 or any(s.startswith(text[-n:]) for s in stops))


@pytest.mark.parametrize("include", [True, False])
@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), max_size=4),
    sizes=sizes,
)
def test_stop_strings(include: bool, text: str, stops: list[str], sizes: list[int]) -> None:
    shown_in_the_end, stop = brute_force(text, stops, include)
    checker = StopStringChecker(stops, include_stop_str_in_output=include)
    shown = read = ""
    for part in cut(list(range(len(text))), sizes):
        piece = "".join(text[i] for i in part)
        shown += checker.push(piece)
        read += piece
        if checker.matched is None:
            assert len(read) - len(shown) == may_begin_a_stop(read, stops)
    assert shown + checker.flush() == shown_in_the_end
    assert checker.matched == stop
    assert checker.push("more") == ("more" if stop is None else "")


def test_long_stop_strings_take_linear_time() -> None:
    checker = StopStringChecker(["a" * 50_000 + "b", "a" * 50_000 + "c"])
    assert sum(len(checker.push("a" * 10)) for _ in range(20_000)) == 150_000
    assert checker.push("b") == ""
    assert checker.matched == "a" * 50_000 + "b"


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("END", r"stop: .* write \['END'\]"),
        (["a", ""], r"stop\[1\]: expected at least one character"),
        (["\ud800"], r"stop\[0\]: character 0"),
        ([b"x"], r"stop\[0\]: expected a str, found bytes"),
    ],
)
def test_bad_stop_strings(stop: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        StopStringChecker(stop)


def test_stop_while_streaming(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen2"]
    ids = tokenizer.encode("The dog 漢字 said\n\nUser: more")
    before = len(tokenizer.encode("The dog 漢字 said"))
    stream = StreamDetokenizer(tokenizer, stop=["\n\nUser:", "</s>"])
    shown = ""
    for token_id in ids:
        shown += stream.push([token_id])
        assert "\n" not in shown
    assert shown == "The dog 漢字 said"
    assert stream.flush() == ""
    match = stream.stop_match
    assert match is not None
    assert match.stop == "\n\nUser:"
    assert tokenizer.decode(ids[: match.num_tokens]).endswith("\n\nUser:")
    assert match.num_tokens > before
    # All at once gives the same, and what follows is ignored.
    at_once = StreamDetokenizer(tokenizer, stop=["\n\nUser:", "</s>"], include_stop_str_in_output=True)
    assert at_once.push(ids) == "The dog 漢字 said\n\nUser:"
    assert at_once.push(ids) + at_once.flush() == ""
    assert at_once.stop_match == match


def test_stop_string_that_does_not_come(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen2"]
    stream = StreamDetokenizer(tokenizer, stop=["aaab", "\ufffd!"])
    assert stream.push(tokenizer.encode("xaaa")) == "x"
    assert stream.flush() == "aaa"
    assert stream.stop_match is None


def test_stop_string_in_what_flush_brings(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen2"]
    stream = StreamDetokenizer(tokenizer, stop=["\ufffd"])
    ids = tokenizer.encode("ab漢")[:-1]
    assert stream.push(ids) == "ab"
    assert stream.flush() == ""
    assert stream.stop_match == StopMatch("\ufffd", len(ids))


def test_min_tokens_are_not_searched(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["qwen2"]
    ids = [i for char in "abXcdXef" for i in tokenizer.encode(char)]
    stream = StreamDetokenizer(tokenizer, stop=["X"], min_tokens=3)
    assert "".join(stream.push([i]) for i in ids) == "abXcd"
    assert stream.stop_match == StopMatch("X", 6)
