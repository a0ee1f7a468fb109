"""Trains two tiny vocabularies and writes what the reference tokenizers make of some texts with them.

The references are the tokenizers that transformers 4 has in Python and later versions do without:
`LlamaTokenizer` on sentencepiece, and `Qwen2Tokenizer`. Run by hand:

    pip install 'transformers==4.57.*' sentencepiece tokenizers
    python tests/golden/tokenizers/make_tokenizer_goldens.py
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog doesn't mind; it's asleep, and they'll let it be.",
    "She sells sea shells by the sea shore, and the shells she sells are sea shells for sure.",
    "def greet(name):\n    return f'Hello, {name}!'\n\nfor i in range(10):\n    print(greet(i))\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe, Straße, Äpfel.",
    "Le cœur a ses raisons que la raison ne connaît point. Où êtes-vous allé cet été ?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "敏捷的棕色狐狸跳过了懒狗。你好,世界!今天天气很好。",
    "素早い茶色の狐がのろまな犬を飛び越える。こんにちは、世界。",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 세계!",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "1 2 3 10 100 1999 2024 3.14159 42",
    "a  b   c    d\n\n\ne\tf",
] * 4

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n  \n",
    "\t\ttabs",
    "Hello, world!",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "a  b   c    d",
    "The quick brown fox doesn't mind. THEY'LL see; I'd've said so.",
    "12345 and 3.14 and 1,000,000 and x2y3",
    "def f(x):\n\treturn x ** 2  # square\n",
    "line one\nline two\r\nline three\r",
    "über Größe cœur été naïve",
    "e\u0301te\u0301 A\u030a \u1e9b\u0323 \u2126 \ufb01",
    "Съешь же ещё булок",
    "敏捷的棕色狐狸 你好,世界!",
    "こんにちは、世界。カタカナ",
    "안녕하세요, 세계!",
    "שלום عالم إِذ بَزَغَت",
    "नमस्ते दुनिया",
    "🙂 😀👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳",
    "zero\u200bwidth\u00a0nbsp\u3000ideographic\u2028line",
    "control \x00\x01\x7f\x80 end",
    "genuine \ufffd replacement",
    "▁ and ▁▁word▁ and <0x41><0x0A>",
    "Ġ and Ċ and «»",
    "...!!!???---",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "http://example.org/a?b=c&d=%20#e",
    "<s>",
    "<s> Hello",
    "Hello <s>.",
    "Hello<s>.</s> and <unk> there",
    "<s><s></s>",
    " <s> x",
    "<s>[INST] Hi [/INST] Hello </s><s>[INST] More [/INST]",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|endoftext|>",
    "text<|endoftext|>text <|im_end|> text",
    "<tool> call </tool>",
    "one<tool>two   <tool>   three",
]


def added(content: str, *, special: bool = True, lstrip: bool = False, rstrip: bool = False) -> dict[str, object]:
    return {
        "content": content,
        "lstrip": lstrip,
        "normalized": False,
        "rstrip": rstrip,
        "single_word": False,
        "special": special,
    }


BASE = {str(i): added(content) for i, content in enumerate(["<unk>", "<s>", "</s>"])}
LLAMA_CASES: dict[str, dict[str, object]] = {
    "no files": {},
    "no bos, but eos": {"tokenizer_config.json": {"add_bos_token": False, "add_eos_token": True}},
    "not legacy": {"tokenizer_config.json": {"legacy": False}},
    "added tokens": {
        "tokenizer_config.json": {
            "bos_token": {"__type": "AddedToken", **added("<s>")},
            "eos_token": "<|im_end|>",
            "pad_token": "<unk>",
            "legacy": True,
            "added_tokens_decoder": {
                **BASE,
                "600": added("<|im_start|>"),
                "601": added("<|im_end|>", rstrip=True),
                "602": added("<tool>", special=False, lstrip=True, rstrip=True),
                "603": added("</tool>", special=False),
                "604": added("<tool>two", special=False),
            },
        }
    },
    "added tokens, not legacy": {
        "tokenizer_config.json": {
            "legacy": False,
            "added_tokens_decoder": {
                **BASE,
                "600": added("<|im_start|>"),
                "601": added("<tool>", special=False),
            },
        }
    },
    "older files": {
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens.json": {"<|im_start|>": 600, "<|im_end|>": 601, "<tool>": 602},
    },
}
QWEN2_CASES: dict[str, dict[str, object]] = {
    "added tokens": {
        "tokenizer_config.json": {
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "added_tokens_decoder": {
                "500": added("<|endoftext|>"),
                "501": added("<|im_start|>"),
                "502": added("<|im_end|>"),
                "503": added("<tool>", special=False),
                "504": added("</tool>", special=False),
            },
        }
    },
}


def train_llama() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_qwen2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def run_cases(
    reference: type[transformers.PreTrainedTokenizer],
    sources: list[Path],
    cases: dict[str, dict[str, object]],
) -> list[dict[str, object]]:
    results = []
    for name, files in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            for source in sources:
                (Path(folder) / source.name).write_bytes(source.read_bytes())
            for file_name, content in files.items():
                (Path(folder) / file_name).write_text(json.dumps(content))
            tokenizer = reference.from_pretrained(folder)
        ids = [tokenizer.encode(text) for text in TEXTS]
        results.append(
            {
                "name": name,
                "files": files,
                "vocab_size": len(tokenizer),
                "special_ids": sorted(set(tokenizer.all_special_ids)),
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "ids": ids,
                "plain_ids": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
                "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
            }
        )
    return results


def write(path: Path, cases: list[dict[str, object]]) -> None:
    versions = {module.__name__: module.__version__ for module in (transformers, sentencepiece, tokenizers)}
    rows = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"versions": {json.dumps(versions)},\n"texts": {json.dumps(TEXTS)},\n"cases": [\n{rows}\n]}}\n')


def main() -> None:
    llama, qwen2 = HERE / "llama", HERE / "qwen2"
    llama.mkdir(exist_ok=True)
    qwen2.mkdir(exist_ok=True)
    (llama / "tokenizer.model").write_bytes(train_llama())
    train_qwen2().model.save(str(qwen2))
    write(HERE / "llama.json", run_cases(transformers.LlamaTokenizer, [llama / "tokenizer.model"], LLAMA_CASES))
    sources = [qwen2 / "vocab.json", qwen2 / "merges.txt"]
    write(HERE / "qwen2.json", run_cases(transformers.Qwen2Tokenizer, sources, QWEN2_CASES))


if __name__ == "__main__":
    main()
