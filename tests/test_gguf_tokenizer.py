"""Tokenizers rebuilt from GGUF vocabularies: equal to the ones the vocabularies were taken from."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf_files import (
    Sizes,
    byte_vocabulary,
    convert,
    gguf_tensors,
    hf_weights,
    model_metadata,
    read_json,
    write_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llm_boost.gguf_convert import convert_gguf

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't care.",
    "    def main(argc, argv):\n\t\treturn x[0] + 12345 * 3.14159  # comment\n\n\n",
    "你好，世界！今天天气很好，我们去公园散步吧。 東京タワーは高いです。",
    "Привет, мир! Как дела? 안녕하세요 세계. مرحبا بالعالم",
    "naïve café Ünïcödé, I'LL we've 'S  ½ ² Ⅷ ٣ 😀🎉👨‍👩‍👧",
] * 4
# Where splitting rules differ.
ASCII = [
    "the",
    " the",
    "dog",
    "12",
    "345",
    " 6",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "'s",
    "'LL",
    "/",
    "A",
    "zq",
]
OTHERS = ["你好", "é", "e\u0301", "٣", "½", "😀", "\u3000", "..."]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(ASCII + OTHERS), max_size=20).map("".join),
)
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# As in the tokenizer.json of SmolLM2, GPT-2, Qwen2.5 and Llama 3.
REFERENCES: dict[str, tuple[pre_tokenizers.PreTokenizer, bool, bool]] = {  # pre-tokenizer, NFC, ignore_merges
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2]), False, False),
    "gpt-2": (GPT2, False, False),
    "qwen2": (split(WORD + r"\p{N}" + REST), True, False),
    "llama-bpe": (split(WORD + r"\p{N}{1,3}" + REST), False, True),
}


@pytest.fixture(scope="module", params=REFERENCES)
def byte_level(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    """A byte-level tokenizer trained here, and the model directory converted from its vocabulary."""
    pre_tokenizer, nfc, ignore_merges = REFERENCES[request.param]
    reference = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    reference.pre_tokenizer = pre_tokenizer
    reference.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=sorted(alphabet), show_progress=False)
    reference.train_from_iterator(CORPUS, trainer)
    model = json.loads(reference.to_str())["model"]
    # A token that no merge leads to: only `ignore_merges` finds it.
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "zq", "<|end|>", "<think>"]
    reference.model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        [tuple(merge) for merge in model["merges"]],
        ignore_merges=ignore_merges,
    )
    if nfc:
        reference.normalizer = normalizers.NFC()
    reference.add_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    reference.add_tokens([AddedToken("<think>", special=False, normalized=False)])

    sizes = Sizes(vocab=len(tokens) + 2)
    metadata = model_metadata("llama", sizes) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": request.param,
        "tokenizer.ggml.tokens": [*tokens, f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"],
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4, 5, 5],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|end|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
    }
    tensors = gguf_tensors("llama", sizes, hf_weights("llama", sizes, tie=True))
    return reference, convert(tmp_path_factory.mktemp(request.param), metadata, tensors)


class TestByteLevelTokenizer:
    def test_equals_the_original(self, byte_level: tuple[Tokenizer, Path]) -> None:
        reference, directory = byte_level
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

        @settings(max_examples=300, deadline=None)
        @given(TEXTS)
        def check(text: str) -> None:
            expected = reference.encode(text, add_special_tokens=False)
            found = tokenizer.encode(text, add_special_tokens=False)
            assert found.tokens == expected.tokens
            assert found.ids == expected.ids
            assert tokenizer.decode(found.ids) == reference.decode(expected.ids)

        check()
        for text in CORPUS:
            assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text).ids

    def test_added_tokens(self, byte_level: tuple[Tokenizer, Path]) -> None:
        reference, directory = byte_level
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = "the<|end|> dog <think>12"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text).ids
        assert tokenizer.decode(ids) == "the dog <think>12"
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        # The rows that only pad the embedding are no tokens.
        assert tokenizer.get_vocab_size() == read_json(directory, "config")["vocab_size"] - 2

    def test_bos_where_the_file_does_not_say(self, byte_level: tuple[Tokenizer, Path]) -> None:
        reference, directory = byte_level
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        wants_bos = reference.model.ignore_merges  # the one of Llama 3
        assert read_json(directory, "tokenizer_config")["add_bos_token"] is wants_bos
        bos = [reference.token_to_id("<|end|>")] if wants_bos else []
        assert tokenizer.encode("the dog").ids == bos + reference.encode("the dog").ids


@pytest.fixture(scope="module", params=[True, False], ids=["byte fallback", "unknown token"])
def sentencepiece_model(request: pytest.FixtureRequest) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE, trained with the options of Llama 2's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=330 + 256 * request.param,
        byte_fallback=request.param,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    def kind(index: int) -> int:
        if model.is_unknown(index):
            return 2
        return 3 if model.is_control(index) else 6 if model.is_byte(index) else 1

    count = model.vocab_size()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(index) for index in range(count)],
        "tokenizer.ggml.scores": [model.get_score(index) for index in range(count)],
        "tokenizer.ggml.token_type": [kind(index) for index in range(count)],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }


class TestSentencePieceTokenizer:
    def converted(self, model: sentencepiece.SentencePieceProcessor, path: Path, **changes: Any) -> Path:
        sizes = Sizes(vocab=model.vocab_size())
        metadata = model_metadata("llama", sizes) | sentencepiece_metadata(model) | changes
        return convert(path, metadata, gguf_tensors("llama", sizes, hf_weights("llama", sizes, tie=True)))

    def test_equals_sentencepiece(
        self, sentencepiece_model: sentencepiece.SentencePieceProcessor, tmp_path: Path
    ) -> None:
        directory = self.converted(sentencepiece_model, tmp_path)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

        # Text that spells a special token is one in Hugging Face tokenizers, and just text in SentencePiece.
        @settings(max_examples=500, deadline=None)
        @given(TEXTS.filter(lambda text: not re.search("<s>|</s>|<unk>", text)))
        def check(text: str) -> None:
            expected = sentencepiece_model.encode(text)
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected
            if sentencepiece_model.unk_id() not in expected:
                assert tokenizer.decode(expected) == sentencepiece_model.decode(expected)

        check()
        for text in [*CORPUS, " " * 50, "ab" * 300, "xŁŁx Ł"]:
            assert tokenizer.encode(text, add_special_tokens=False).ids == sentencepiece_model.encode(text)

    def test_text_that_spells_a_byte_token(self, tmp_path: Path) -> None:
        tokens = ["<unk>", "<0x41>", "▁", "<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"]
        changes = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
            "tokenizer.ggml.token_type": [2, 6] + [1] * (len(tokens) - 2),
            "tokenizer.ggml.unknown_token_id": 0,
        }
        ids = {"bos_token_id": None, "eos_token_id": None, "padding_token_id": None}
        changes |= {f"tokenizer.ggml.{key}": value for key, value in ids.items()}
        directory = convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        assert tokenizer.encode("<0x41>").tokens == ["▁", "<0x41", ">"]
        assert tokenizer.encode("A").tokens == ["▁", "<0x41>"]

    def test_special_tokens(self, sentencepiece_model: sentencepiece.SentencePieceProcessor, tmp_path: Path) -> None:
        directory = self.converted(sentencepiece_model, tmp_path, **{"tokenizer.ggml.add_eos_token": True})
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        ids = sentencepiece_model.encode("the dog")
        assert tokenizer.encode("the dog").ids == [1, *ids, 2]
        assert tokenizer.encode("the", "dog").ids == [
            1,
            *sentencepiece_model.encode("the"),
            2,
            1,
            *sentencepiece_model.encode("dog"),
            2,
        ]
        # As in Llama 2's tokenizer.json, what follows a special token starts like a text of its own.
        assert tokenizer.encode("<s>the dog</s>", add_special_tokens=False).ids == [1, *ids, 2]
        config = read_json(directory, "tokenizer_config")
        assert [config[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")] == [
            "<s>",
            "</s>",
            "<unk>",
            None,
        ]
        assert (config["add_bos_token"], config["add_eos_token"]) == (True, True)

    def test_without_a_leading_space(
        self, sentencepiece_model: sentencepiece.SentencePieceProcessor, tmp_path: Path
    ) -> None:
        directory = self.converted(sentencepiece_model, tmp_path, **{"tokenizer.ggml.add_space_prefix": False})
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        ids = tokenizer.encode(" the dog", add_special_tokens=False).ids
        assert ids == sentencepiece_model.encode("the dog")
        assert tokenizer.decode(ids) == " the dog"


class TestTokenizerConfig:
    def test_chat_template(self, tmp_path: Path) -> None:
        source = write_model(tmp_path / "m.gguf", **{"tokenizer.chat_template": "{{ messages }}\n你好"})
        config = read_json(convert_gguf(source, tmp_path / "m", progress=False), "tokenizer_config")
        assert config == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 128,
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": "<|0|>",
            "eos_token": "<|1|>",
            "unk_token": None,
            "pad_token": "<|2|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": "{{ messages }}\n你好",
        }

    def test_named_chat_templates(self, tmp_path: Path) -> None:
        changes = {
            "tokenizer.chat_template": "a",
            "tokenizer.chat_templates": ["tool_use", "rag"],
            "tokenizer.chat_template.tool_use": "b",
            "tokenizer.chat_template.rag": "c",
        }
        directory = convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)
        templates = read_json(directory, "tokenizer_config")["chat_template"]
        assert templates == [
            {"name": "default", "template": "a"},
            {"name": "tool_use", "template": "b"},
            {"name": "rag", "template": "c"},
        ]

    def test_a_placeholder_with_a_role_is_a_token(self, tmp_path: Path) -> None:
        changes = byte_vocabulary() | {"tokenizer.ggml.padding_token_id": 260}
        changes["tokenizer.ggml.tokens"][259:] = ["[PAD259]", "[PAD260]"]
        changes["tokenizer.ggml.token_type"][259:] = [5, 5]
        directory = convert_gguf(write_model(tmp_path / "m.gguf", **changes), tmp_path / "m", progress=False)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        assert (tokenizer.token_to_id("[PAD260]"), tokenizer.token_to_id("[PAD259]")) == (260, None)
