"""Tokenizers: equality with the reference tokenizers, what the files may say, and files that are wrong."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import GOLDEN, byte_fallback_json, byte_level_json, copy_vocabulary, write_json
from tokenizers import decoders, processors

from llm_boost.errors import LlmBoostError, RequestError, TokenizerError
from llm_boost.text import _tokenizer_config
from llm_boost.text.tokenizer import Tokenizer, load_tokenizer

GOLDENS = {family: json.loads((GOLDEN / f"{family}.json").read_text()) for family in ("llama", "qwen2")}
CASES = [(family, case) for family, golden in GOLDENS.items() for case in golden["cases"]]
BOS = {"tokenizer_config.json": {"bos_token": "<|bos|>"}}


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_json(tmp_path_factory.mktemp("llama3"), byte_level_json(), BOS))


# Equality with the references


@pytest.mark.parametrize(("family", "case"), CASES, ids=[f"{family}-{case['name']}" for family, case in CASES])
def test_encodes_as_the_reference_does(tmp_path: Path, family: str, case: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, family, case["files"]))
    texts = GOLDENS[family]["texts"]
    for text, ids, plain_ids in zip(texts, case["ids"], case["plain_ids"], strict=True):
        assert (text, tokenizer.encode(text)) == (text, ids)
        assert (text, tokenizer.encode(text, add_special_tokens=False)) == (text, plain_ids)
    assert tokenizer.encode_batch(texts) == case["ids"]
    assert tokenizer.encode_batch(texts, add_special_tokens=False) == case["plain_ids"]
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    assert {name: getattr(tokenizer, name) for name in names} == {name: case[name] for name in names}
    assert tokenizer.special_ids >= set(case["special_ids"])


@pytest.mark.parametrize("case", GOLDENS["llama"]["cases"], ids=lambda case: case["name"])
def test_llama_texts_come_back(tmp_path: Path, case: dict[str, Any]) -> None:
    # The reference loses leading spaces, and puts others around special tokens. Apart from that it agrees.
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "llama", case["files"]))
    for text, ids, decoded in zip(GOLDENS["llama"]["texts"], case["ids"], case["decoded"], strict=True):
        if not re.search(r"</?(s|tool|\|im_start\||\|im_end\|)>", text):
            assert tokenizer.decode(ids) == text.replace("▁", " ")
            if not text.startswith((" ", "▁")):
                assert tokenizer.decode(ids) == decoded


def test_qwen2_texts_come_back_as_from_the_reference(tmp_path: Path) -> None:
    (case,) = GOLDENS["qwen2"]["cases"]
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "qwen2", case["files"]))
    for text, ids, decoded in zip(GOLDENS["qwen2"]["texts"], case["ids"], case["decoded"], strict=True):
        assert tokenizer.decode(ids) == decoded
        assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_qwen2_without_a_config(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "qwen2"))
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [500, 501, 502]
    assert tokenizer.special_ids == {500, 501, 502}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, 500, 500)


# What a tokenizer offers


def test_tokens_and_bytes(llama3: Tokenizer, tmp_path: Path) -> None:
    assert llama3.token_to_id("Ġthe") is not None
    assert llama3.token_to_id("nope") is None
    assert llama3.id_to_token(llama3.vocab_size) is llama3.id_to_token(-1) is None
    for token, data in [("Ġthe", b" the"), ("Ċ", b"\n"), ("Ã", b"\xc3"), ("<｜eos｜>", "<｜eos｜>".encode())]:
        token_id = llama3.token_to_id(token)
        assert token_id is not None
        assert llama3.id_to_token(token_id) == token
        assert llama3.token_bytes(token_id) == data
    llama = load_tokenizer(copy_vocabulary(tmp_path, "llama"))
    assert llama.token_to_id("<0x0A>") == 13
    assert [llama.token_bytes(i) for i in (0, 1, 13, 600)] == [b"<unk>", b"<s>", b"\n", b""]
    the = llama.token_to_id("▁the")
    assert the is not None
    assert llama.token_bytes(the) == b" the"
    assert llama.token_to_id("nope") is None


def test_every_byte_has_a_token(llama3: Tokenizer) -> None:
    singles = {llama3.token_bytes(i) for i in range(llama3.vocab_size)}
    assert singles >= {bytes([byte]) for byte in range(256)}


def test_text_of_special_tokens(llama3: Tokenizer, tmp_path: Path) -> None:
    llama = load_tokenizer(copy_vocabulary(tmp_path, "llama"))
    for tokenizer, bos in ((llama3, "<|bos|>"), (llama, "<s>")):
        text = f"a {bos} b"
        bos_id = tokenizer.bos_token_id
        assert tokenizer.encode(text).count(bos_id) == 2
        literal = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert bos_id not in literal
        assert tokenizer.decode(literal) == text
        assert tokenizer.encode_batch([text], add_special_tokens=False, parse_special=False) == [literal]
        assert tokenizer.encode(text).count(bos_id) == 2  # the one does not change the other


@pytest.mark.parametrize("text", ["a\ud800", 5, None, b"x"])
def test_text_that_is_none(llama3: Tokenizer, text: Any) -> None:
    with pytest.raises(RequestError, match=r"^text: "):
        llama3.encode(text)
    with pytest.raises(RequestError, match=r"^texts\[1\]: "):
        llama3.encode_batch(["fine", text])


def test_threads(llama3: Tokenizer) -> None:
    texts = [f"The dog {n} 漢字 <|bos|>" * n for n in range(20)]
    expected = [llama3.encode(text, parse_special=False) for text in texts]
    wrong = []

    def run() -> None:
        for _ in range(20):
            for text, ids in zip(texts, expected, strict=True):
                if llama3.encode(text, parse_special=False) != ids or llama3.decode(ids) != text:
                    wrong.append(text)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What the files may say


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    copy_vocabulary(tmp_path, "qwen2")
    copy_vocabulary(tmp_path, "llama")
    assert load_tokenizer(tmp_path).token_to_id("▁the") is not None  # tokenizer.model before vocab.json
    write_json(tmp_path, byte_level_json())
    assert load_tokenizer(tmp_path).token_to_id("<tool call>") is not None


def test_roles_may_be_null(tmp_path: Path) -> None:
    config = {"bos_token": None, "eos_token": None, "unk_token": None}
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "llama", {"tokenizer_config.json": config}))
    assert tokenizer.bos_token_id is tokenizer.eos_token_id is None
    assert 1 not in tokenizer.encode("<s>")
    assert tokenizer.special_ids == {0, 1, 2}  # the model itself says so


def test_newer_entry_beats_older_files(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "tokenizer_config.json": {"eos_token": "</s>", "added_tokens_decoder": {}},
        "special_tokens_map.json": {"eos_token": "<s>"},
        "added_tokens.json": {"<new>": 600},
    }
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "llama", files))
    assert (tokenizer.eos_token_id, tokenizer.vocab_size) == (2, 600)


def test_truncation_and_padding_are_off(tmp_path: Path) -> None:
    backend = byte_level_json()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = load_tokenizer(write_json(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("a text of some length")) == "a text of some length"


def test_config_makes_tokens_special(tmp_path: Path) -> None:
    files = {
        "tokenizer_config.json": {
            "eos_token": {"content": "the", "lstrip": False},
            "extra_special_tokens": {"image_token": "<tool call>"},
            "added_tokens_decoder": {"503": {"content": "<new>", "special": True, "normalized": False}},
        }
    }
    tokenizer = load_tokenizer(write_json(tmp_path, byte_level_json(), files))
    the, tool = tokenizer.token_to_id("the"), tokenizer.token_to_id("<tool call>")
    assert tokenizer.eos_token_id == the
    assert tokenizer.special_ids == {500, 501, 503, the, tool}
    assert tokenizer.encode("<new>there") == [500, 503, the, *tokenizer.encode("re")[1:]]
    assert tokenizer.decode(tokenizer.encode("a the<tool call><new> b")) == "a  b"


@pytest.mark.parametrize(
    ("config", "length"),
    [(None, None), (1e30, None), (10**30, None), (8192, 8192)],
)
def test_model_max_length(tmp_path: Path, config: float | None, length: int | None) -> None:
    copy_vocabulary(tmp_path, "llama", {"tokenizer_config.json": {"model_max_length": config}})
    assert load_tokenizer(tmp_path).model_max_length == length


def test_chat_templates(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    config: dict[str, object] = {"chat_template": "{{ bos_token }}config {{ messages[0].content }}"}
    files = {"tokenizer_config.json": config}
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "llama", files))
    assert tokenizer.chat_template == config["chat_template"]
    assert tokenizer.apply_chat_template(messages) == "<s>config Hello"
    assert tokenizer.apply_chat_template(messages, chat_template="{{ x }}", x=[1]) == "[1]"

    named = [{"name": "default", "template": "{#d#}named"}, {"name": "tool_use", "template": "{{ tools }}"}]
    config["chat_template"] = named
    tokenizer = load_tokenizer(copy_vocabulary(tmp_path, "llama", files))
    assert tokenizer.apply_chat_template(messages) == "named"
    assert tokenizer.apply_chat_template(messages, tools=[{"a": 1}]) == "[{'a': 1}]"

    (tmp_path / "chat_template.jinja").write_text("{#f#}file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{#f#}rag")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.apply_chat_template(messages) == "file"
    assert tokenizer.apply_chat_template(messages, chat_template="rag") == "rag"


def test_nothing_in_the_directory_is_executed(tmp_path: Path) -> None:
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    tokenizer = load_tokenizer(write_json(tmp_path, byte_level_json(), {"tokenizer_config.json": config}))
    assert tokenizer.decode(tokenizer.encode("x")) == "x"


# Files that are wrong


def with_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Returns what writes a tokenizer.json with a change."""

    def write(directory: Path) -> None:
        content = json.loads(byte_level_json().to_str())
        change(content)
        text = json.dumps(content, ensure_ascii=False)  # as the library writes it
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")

    return write


def with_escaped_prefix(directory: Path) -> None:
    """Writes a tokenizer.json that sets continuing_subword_prefix, and writes one letter of that as an escape."""
    with_json(lambda json: json["model"].update(continuing_subword_prefix="xxxx"))(directory)
    path = directory / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"continuing_subword_prefix', rb'"continuing\u005fsubword_prefix'))


def with_config(family: str, config: object, name: str = "tokenizer_config.json") -> Callable[[Path], object]:
    return lambda directory: copy_vocabulary(directory, family, {name: config})


def with_file(family: str, name: str, content: bytes) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        copy_vocabulary(directory, family)
        (directory / name).write_bytes(content)

    return write


SINGLE_WORD = {"600": {"content": "<x>", "single_word": True}}
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (
        lambda path: None,
        "has no tokenizer: expected tokenizer.json or tokenizer.model or vocab.json",
    ),
    "empty json": (lambda path: (path / "tokenizer.json").touch(), "tokenizer.json: is not valid JSON"),
    "no json": (lambda path: (path / "tokenizer.json").write_text("version https://"), "not valid JSON"),
    "no object": (lambda path: (path / "tokenizer.json").write_text("[]"), "is a JSON list, expected an object"),
    "deep json": (lambda path: (path / "tokenizer.json").write_text("[" * 10**6), "not valid JSON"),
    "not utf-8": (lambda path: (path / "tokenizer.json").write_bytes(b"{\xff"), "not valid JSON: .* byte 0xff"),
    "no file": (lambda path: (path / "tokenizer.json").mkdir(), "expected a regular file"),
    "fifo": (lambda path: os.mkfifo(path / "tokenizer.json"), "expected a regular file"),
    "no model": (with_json(lambda json: json.pop("model")), "not a tokenizer"),
    "bad merge": (with_json(lambda json: json["model"]["merges"].append(["x", "yyy"])), "out of vocabulary"),
    "no decoder": (with_json(lambda json: json.update(decoder=None)), r"its decoder is \[None\]"),
    "other decoder": (
        with_json(lambda json: json.update(decoder=json_of(decoders.WordPiece()))),
        r"its decoder is \[WordPiece\], expected \[ByteLevel\]",
    ),
    "strip each": (
        with_json(lambda json: json.update(decoder=json_of(decoders.Strip(" ", 1, 0)))),
        r"its decoder is \[Strip\]",
    ),
    "strip right": (
        with_json(lambda json: json.update(decoder=json_of(fuse_and(decoders.Strip(" ", 0, 1))))),
        "expected leading spaces only",
    ),
    "strip other": (
        with_json(lambda json: json.update(decoder=json_of(fuse_and(decoders.Strip("x", 1, 0))))),
        "expected leading spaces only",
    ),
    "replace pattern": (
        with_json(lambda json: json.update(decoder=replace_pattern())),
        "expected a plain string",
    ),
    "prefix": (
        with_json(lambda json: json["model"].update(continuing_subword_prefix="xxxx")),
        "has a 'continuing_subword_prefix'",
    ),
    "escaped prefix": (with_escaped_prefix, "has a 'continuing_subword_prefix'"),
    "no tokens": (
        with_json(lambda json: json.update(model={"type": "WordLevel", "vocab": {}, "unk_token": "x"})),
        "not a tokenizer|0 token ids",
    ),
    "panic": (
        with_json(lambda json: json["post_processor"].update(special_tokens={})),
        "not a tokenizer",
    ),
    "config": (with_config("llama", []), "tokenizer_config.json: is a JSON list"),
    "role": (with_config("llama", {"eos_token": 2}), "eos_token: expected a str, found int"),
    "empty role": (with_config("llama", {"eos_token": ""}), "eos_token: expected the text of a token"),
    "surrogate": (with_config("llama", {"eos_token": "\ud800"}), "eos_token: character 0"),
    "missing role": (with_config("llama", {"pad_token": "[PAD]"}), r"lacks '\[PAD\]', which is configured"),
    "missing in bpe": (with_config("qwen2", {"bos_token": "<x>"}), "lacks '<x>', which is configured"),
    "missing extra": (with_config("llama", {"additional_special_tokens": ["<x>"]}), "lacks '<x>'"),
    "extra": (with_config("llama", {"extra_special_tokens": "x"}), "expected list, found str"),
    "flag": (with_config("llama", {"add_bos_token": 1}), "add_bos_token: expected bool, found int"),
    "length": (with_config("llama", {"model_max_length": "8k"}), "expected int, found str"),
    "length of yes": (with_config("llama", {"model_max_length": True}), "expected int, found bool"),
    "merges of bytes": (with_file("qwen2", "merges.txt", b"a b\n\xff"), "merges.txt: not UTF-8 at byte 4"),
    "template": (with_config("llama", {"chat_template": 5}), "chat_template: expected list, found int"),
    "templates": (with_config("llama", {"chat_template": [{"name": "x"}]}), "x: expected a str"),
    "added": (with_config("llama", {"added_tokens_decoder": []}), "expected dict, found list"),
    "added id": (with_config("llama", {"added_tokens_decoder": {"x": {}}}), "token ids as keys, found 'x'"),
    "added text": (with_config("llama", {"added_tokens_decoder": {"7": {}}}), "expected the text of a token"),
    "single word": (with_config("llama", {"added_tokens_decoder": SINGLE_WORD}), "'single_word'"),
    "far id": (
        with_config("llama", {"added_tokens_decoder": {"99999999": {"content": "<x>"}}}),
        "100000000 token ids",
    ),
    "gap": (
        with_config("qwen2", {"added_tokens_decoder": {"600": {"content": "<|endoftext|>"}}}),
        r"'<\|endoftext\|>' is token 500, but tokenizer_config.json says 600",
    ),
    "older files": (with_config("llama", {"<x>": "600"}, "added_tokens.json"), "expected int, found str"),
    "llama class": (
        with_config("llama", {"tokenizer_class": "T5TokenizerFast"}),
        "says T5Tokenizer, expected LlamaTokenizer or CodeLlamaTokenizer; .* need a tokenizer.json",
    ),
    "qwen2 class": (with_config("qwen2", {"tokenizer_class": "GPT2Tokenizer"}), "expected Qwen2Tokenizer"),
    "no pieces": (with_file("llama", "tokenizer.model", b""), "not a SentencePiece model: it has no pieces"),
    "no spm": (with_file("llama", "tokenizer.model", b"x" * 100), "not a SentencePiece model"),
    "merge of 3": (
        with_file("qwen2", "merges.txt", b"#version: 0.2\na b c\n"),
        "line 2: expected two pieces",
    ),
    "merge unknown": (with_file("qwen2", "merges.txt", b"a zzz\n"), "vocab.json and merges.txt: .*zzz"),
    "vocab of text": (with_file("qwen2", "vocab.json", b'{"a": "b"}'), "vocab.json and merges.txt"),
}


def json_of(decoder: decoders.Decoder) -> object:
    return json.loads(decoder.__getstate__())


def fuse_and(step: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Fuse(), step])


def replace_pattern() -> object:
    steps = [{"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "}, {"type": "Fuse"}]
    return {"type": "Sequence", "decoders": steps}


def test_marks_that_are_not_set(tmp_path: Path) -> None:
    with_json(lambda json: json["model"].update(continuing_subword_prefix="", end_of_word_suffix=None))(tmp_path)
    assert load_tokenizer(tmp_path).encode("a")


def test_mark_that_is_a_token(tmp_path: Path) -> None:
    with_json(lambda json: json["model"]["vocab"].update(end_of_word_suffix=5000))(tmp_path)
    assert load_tokenizer(tmp_path).token_to_id("end_of_word_suffix") == 5000


def test_huge_id(tmp_path: Path) -> None:
    with_json(lambda json: json["model"]["vocab"].update(x=2**31))(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.id_to_token(2**31) is tokenizer.id_to_token(2**40) is None
    with pytest.raises(TokenizerError, match="2147483649 token ids, expected 1 to 16777216"):
        _ = tokenizer.vocab_size


@pytest.mark.parametrize(("write", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a model directory"):
        load_tokenizer(tmp_path / "missing")


def test_missing_merges(tmp_path: Path) -> None:
    copy_vocabulary(tmp_path, "qwen2")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges.txt: expected a regular file"):
        load_tokenizer(tmp_path)


def test_files_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokenizer_config, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(TokenizerError, match=r"tokenizer.model: expected at most"):
        load_tokenizer(copy_vocabulary(tmp_path, "llama"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    if name == "tokenizer.json":
        write_json(tmp_path, byte_fallback_json())
    else:
        copy_vocabulary(tmp_path, "llama" if name == "tokenizer.model" else "qwen2")
    whole = (tmp_path / name).read_bytes()
    rng = random.Random(5)
    for _ in range(150):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            tokenizer = load_tokenizer(tmp_path)
            tokenizer.decode(tokenizer.encode("The dog 漢字"))
        except LlmBoostError:
            pass


def test_post_processor_of_the_json_counts(tmp_path: Path) -> None:
    backend = byte_level_json()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    files = {"tokenizer_config.json": {"bos_token": "<|bos|>", "add_bos_token": True}}
    tokenizer = load_tokenizer(write_json(tmp_path, backend, files))
    assert tokenizer.encode("a") == [tokenizer.token_to_id("a")]
