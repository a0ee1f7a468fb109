"""A sequence's logits do not depend on what shares its step: equal bit for bit, on every instruction set level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_boost import Model, SamplingParams, _core

BLOCK = 16
MAX_LEN = 320  # crosses a tile of 256 positions
WIDTH = MAX_LEN // BLOCK
Logits = npt.NDArray[np.float32]


class Caller:
    """A framework with its own block tables: gives every sequence blocks in a shuffled order."""

    def __init__(self, model: Model, num_blocks: int) -> None:
        self.model = model
        self.free = np.random.default_rng(0).permutation(num_blocks).tolist()
        self.tables: dict[str, list[int]] = {}

    def step(self, chunks: dict[str, tuple[list[int], int]]) -> dict[str, Logits]:
        """Computes for each sequence some tokens from a position on; returns the logits of all of them."""
        rows = self.rows(chunks, range(sum(len(tokens) for tokens, _ in chunks.values())))
        ends = np.cumsum([len(tokens) for tokens, _ in chunks.values()])
        return dict(zip(chunks, np.split(rows, ends[:-1]), strict=True))

    def rows(self, chunks: dict[str, tuple[list[int], int]], logit_rows: Sequence[int]) -> Logits:
        """Computes for each sequence some tokens from a position on; returns the logits of these rows of the step."""
        arrays: dict[str, list[int]] = {
            name: [] for name in ("token_ids", "positions", "slots", "context_len", "block_table")
        }
        begin = [0]
        for name, (tokens, start) in chunks.items():
            table = self.tables.setdefault(name, [])
            while len(table) * BLOCK < start + len(tokens):
                table.append(self.free.pop())
            positions = range(start, start + len(tokens))
            arrays["token_ids"] += tokens
            arrays["positions"] += positions
            arrays["slots"] += [table[p // BLOCK] * BLOCK + p % BLOCK for p in positions]
            arrays["context_len"].append(start + len(tokens))
            arrays["block_table"] += table + [-1] * (WIDTH - len(table))
            begin.append(begin[-1] + len(tokens))
        return self.model.forward(**arrays, seq_begin=begin, logit_rows=logit_rows)

    def whole(self, name: str, tokens: list[int], chunk: int = MAX_LEN) -> Logits:
        """Computes a sequence in chunks of the given size."""
        parts = [self.step({name: (tokens[at : at + chunk], at)})[name] for at in range(0, len(tokens), chunk)]
        return np.concatenate(parts)


def load(directory: Path, activation_dtype: str, **options: int) -> Model:
    settings = {
        "max_model_len": MAX_LEN,
        "num_blocks": 200,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 512,
        **options,
    }
    return Model.from_pretrained(directory, activation_dtype=activation_dtype, **settings)


@pytest.fixture(params=[(isa, dtype) for isa in _core.isa_levels() for dtype in ("float32", "bfloat16")], ids="-".join)
def model(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Model]:
    isa, activation_dtype = request.param
    monkeypatch.setenv("LLM_BOOST_ISA", isa)
    with load(tiny_model("llama_gqa_tied"), activation_dtype) as loaded:
        yield loaded


def tokens_of(model: Model, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count).tolist()


def test_prefill_and_decode_equal_prefill_alone(model: Model) -> None:
    tokens = tokens_of(model, 300, 1)
    caller = Caller(model, 200)
    whole = caller.whole("whole", tokens)
    prefilled = caller.step({"steps": (tokens[:250], 0)})["steps"]
    np.testing.assert_array_equal(prefilled, whole[:250])
    for position in range(250, 300):
        decoded = caller.step({"steps": ([tokens[position]], position)})["steps"]
        np.testing.assert_array_equal(decoded[0], whole[position])


@pytest.mark.parametrize("chunk", [1, 3, 16, 61, 129])
def test_chunked_equals_whole(model: Model, chunk: int) -> None:
    tokens = tokens_of(model, 40 if chunk < 3 else 290, 2)
    caller = Caller(model, 200)
    np.testing.assert_array_equal(caller.whole("chunked", tokens, chunk), caller.whole("whole", tokens))


def test_batched_equals_alone(model: Model) -> None:
    lengths = {"a": 1, "b": 37, "c": 150, "d": 16, "e": 2}
    sequences = {name: tokens_of(model, length, length) for name, length in lengths.items()}
    caller = Caller(model, 200)
    batched = caller.step({name: (tokens, 0) for name, tokens in sequences.items()})
    for name, tokens in sequences.items():
        np.testing.assert_array_equal(batched[name], caller.whole(name + " alone", tokens))


def test_mixed_prefill_and_decode_equal_alone(model: Model) -> None:
    tokens = {name: tokens_of(model, 60, seed) for seed, name in enumerate("abcdef")}
    caller = Caller(model, 200)
    expected = {name: caller.whole(name + " alone", sequence) for name, sequence in tokens.items()}
    caller.step({name: (sequence[:40], 0) for name, sequence in tokens.items() if name < "d"})
    mixed = caller.step(
        {name: (sequence[40:41], 40) if name < "d" else (sequence, 0) for name, sequence in tokens.items()}
    )
    for name in tokens:
        np.testing.assert_array_equal(mixed[name], expected[name][40:41] if name < "d" else expected[name])


def test_shared_prefix_equals_recomputed(model: Model) -> None:
    prefix, end = tokens_of(model, 4 * BLOCK, 5), tokens_of(model, 30, 6)
    caller = Caller(model, 200)
    caller.whole("first", prefix + tokens_of(model, 9, 7))
    caller.tables["second"] = caller.tables["first"][:4]
    shared = caller.step({"second": (end, len(prefix))})["second"]
    np.testing.assert_array_equal(shared, caller.whole("alone", prefix + end)[len(prefix) :])


# Of the last layer only these rows are computed. Head sizes times heads that do and do not fill panels of 32 columns.
@pytest.mark.parametrize("name", ["llama_gqa_tied", "qwen2_tied", "llama_wide_heads"])
@pytest.mark.parametrize("isa", _core.isa_levels())
def test_logits_of_some_rows_equal_those_of_all(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, isa: str, name: str
) -> None:
    monkeypatch.setenv("LLM_BOOST_ISA", isa)
    begins = {"a": (0, 290), "b": (290, 291), "c": (291, 300), "d": (300, 300 + 60)}
    choices: dict[str, list[int]] = {
        "none": [],
        "last of each": [289, 290, 299, 359],
        "last of one": [299],
        "neighbours of different sequences": [289, 290, 291],
        "several of a sequence": [0, 17, 18, 19, 255, 256, 257, 301, 358],
        "all but one": [row for row in range(360) if row != 100],
    }
    with load(tiny_model(name), "auto") as model:
        tokens = {sequence: tokens_of(model, end - begin, begin) for sequence, (begin, end) in begins.items()}
        caller = Caller(model, 200)
        expected = np.concatenate([*caller.step({key: (ids, 0) for key, ids in tokens.items()}).values()])
        after = caller.step({key: ([7], len(ids)) for key, ids in tokens.items()})
        for choice, logit_rows in choices.items():
            some = Caller(model, 200)
            logits = some.rows({key: (ids, 0) for key, ids in tokens.items()}, logit_rows)
            np.testing.assert_array_equal(logits, expected[logit_rows], err_msg=choice)
            decoded = some.step({key: ([7], len(ids)) for key, ids in tokens.items()})
            for key, row in after.items():
                np.testing.assert_array_equal(decoded[key], row, err_msg=f"{choice}: the cache of {key}")


@pytest.mark.parametrize("name", ["llama_gqa_tied", "qwen2_tied", "llama_f16"])
@pytest.mark.parametrize("isa", _core.isa_levels())
def test_one_thread_equals_two(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, isa: str, name: str
) -> None:
    monkeypatch.setenv("LLM_BOOST_ISA", isa)
    results = []
    for num_threads in (1, 2, 5):
        with load(tiny_model(name), "auto", num_threads=num_threads) as model:
            assert model.info().num_threads == num_threads
            results.append(Caller(model, 200).whole("x", tokens_of(model, 300, 3)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def generate(model: Model, prompts: list[list[int]], count: int) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Sampled tokens and their log probabilities."""
    params = SamplingParams(max_tokens=count, seed=11, temperature=0.9, logprobs=0, ignore_eos=True)
    samples = [output.outputs[0] for output in model.generate(prompts, params)]
    return [
        (
            sample.token_ids,
            tuple(entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs or (), strict=True)),
        )
        for sample in samples
    ]


@pytest.mark.parametrize("activation_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", _core.isa_levels())
def test_preempted_equals_not_preempted(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, isa: str, activation_dtype: str
) -> None:
    monkeypatch.setenv("LLM_BOOST_ISA", isa)
    directory = tiny_model("llama_gqa_tied")
    with load(directory, activation_dtype, max_num_seqs=8) as model:
        prompts = [tokens_of(model, 20 + 3 * i, i) for i in range(8)]
        expected = generate(model, prompts, 60)
        assert model.stats()["num_preemptions"] == 0
        assert generate(model, prompts[:1], 60) == expected[:1]  # and batched equals alone, and cached equals computed
        assert model.stats()["prefix_hits"] > 0
    with load(directory, activation_dtype, max_num_seqs=8, num_blocks=12) as model:
        assert generate(model, prompts, 60) == expected
        assert model.stats()["num_preemptions"] > 0
