"""The Python API: what `Model` takes, gives and refuses."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from llm_boost import ConfigError, Model, RequestError, SamplingParams, TokenizerError

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Iterator[Model]:
    with Model.from_pretrained(tiny_model("llama_mha"), max_num_seqs=8) as loaded:
        yield loaded


def ids(output: Any) -> tuple[int, ...]:
    tokens: tuple[int, ...] = output.outputs[0].token_ids
    return tokens


class TestPrompts:
    """Every form that a prompt can have."""

    def test_one_text_many_texts_ids_and_messages(self, model: Model) -> None:
        text = "hello"
        tokens = model.tokenizer.encode(text)
        alone = model.generate(text, GREEDY)
        assert [output.prompt for output in alone] == [text]
        assert alone[0].prompt_token_ids == tuple(tokens)
        many = model.generate([text, "world"], GREEDY)
        assert [output.prompt for output in many] == [text, "world"]
        assert ids(many[0]) == ids(alone[0])
        for prompt in (tokens, [tokens], np.array(tokens), tuple(tokens)):
            by_ids = model.generate(prompt, GREEDY)
            assert len(by_ids) == 1
            assert ids(by_ids[0]) == ids(alone[0])
            assert by_ids[0].prompt is None
        messages = [{"role": "user", "content": "hi"}]
        assert ids(model.generate(messages, GREEDY)[0]) == ids(model.chat(messages, GREEDY)[0])
        assert len(model.chat([messages, messages], GREEDY)) == 2
        assert len(model.generate([messages, text, tokens], GREEDY)) == 3
        assert model.generate([], GREEDY) == []

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("", "the prompt is empty"),
            ([[]], "the prompt is empty"),
            ([[257]], "the prompt holds token 257 at position 0, expected 0 to 256"),
            ([[1, -1]], "the prompt holds token -1 at position 1"),
            ([[1 << 40]], "expected 32-bit integers"),
            ([[1.5]], "elements of type float64, expected integers"),
            ("a\udc80b", "text"),
            (3, "prompts is a int, expected text"),
            ([[1] * 512], "the prompt has 512 tokens, expected less than max_model_len 512"),
        ],
    )
    def test_bad_prompts(self, model: Model, prompt: Any, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            model.generate(prompt, GREEDY)

    def test_one_bad_prompt_refuses_all(self, model: Model) -> None:
        before = model.stats()["prompt_tokens"]
        with pytest.raises(RequestError):
            model.generate([[1, 2, 3], [9999]], GREEDY)
        assert model.stats()["prompt_tokens"] == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0, expected"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": 1e-9}, "temperature is .*expected 0 .greedy. or at least 0.0001"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3"),
        ({"frequency_penalty": -3.0}, "frequency_penalty is -3"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9, expected 0 to max_tokens 8"),
        ({"n": 0}, "n is 0"),
        ({"n": 9}, "n is 9, expected 1 to max_num_seqs 8"),
        ({"logprobs": 101}, "logprobs is 101"),
        ({"stop_token_ids": [257]}, "stop_token_ids holds token 257, expected 0 to 256"),
        ({"logit_bias": {300: 1.0}}, "logit_bias holds token 300"),
        ({"stop": [""]}, "stop.0.: expected at least one character"),
    ],
)
def test_parameters_out_of_range(model: Model, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.generate("x", SamplingParams(**values))


class TestResults:
    """What generate and stream give."""

    def test_lengths_and_reasons(self, model: Model) -> None:
        output = model.generate("abc", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))[0].outputs[0]
        assert (len(output.token_ids), output.finish_reason, output.stop_reason) == (5, "length", None)
        assert output.text == model.tokenizer.decode(output.token_ids)
        assert output.logprobs is None
        assert output.cumulative_logprob is None

    def test_unlimited_tokens_fill_the_context(self, model: Model) -> None:
        output = model.generate("abc", SamplingParams(max_tokens=None, ignore_eos=True, seed=1))[0]
        assert len(output.prompt_token_ids) + len(ids(output)) == 512

    def test_stop_token(self, model: Model) -> None:
        free = ids(model.generate("abc", SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))[0])
        stop = free[3]
        output = model.generate("abc", SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[stop]))[0].outputs[
            0
        ]
        first = free.index(stop)
        assert output.token_ids == free[: first + 1]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.text == model.tokenizer.decode(free[:first])

    def test_end_of_text(self, model: Model) -> None:
        eos = model.config.eos_token_ids[0]
        bias = {eos: 50.0}
        output = model.generate("abc", SamplingParams(temperature=0, max_tokens=9, logit_bias=bias))[0].outputs[0]
        assert (output.token_ids, output.finish_reason, output.stop_reason, output.text) == ((eos,), "stop", None, "")
        ignored = model.generate("abc", SamplingParams(temperature=0, max_tokens=9, logit_bias=bias, ignore_eos=True))[
            0
        ].outputs[0]
        assert ignored.token_ids == (eos,) * 9
        late = model.generate("abc", SamplingParams(temperature=0, max_tokens=9, min_tokens=4, logit_bias=bias))[
            0
        ].outputs[0]
        assert late.token_ids.index(eos) == 4

    def test_stop_string(self, model: Model) -> None:
        params = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
        free = model.generate("abc", SamplingParams(**params))[0].outputs[0]
        stop = free.text[5:7]
        output = model.generate("abc", SamplingParams(**params, stop=[stop, "never there"]))[0].outputs[0]
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert output.text == free.text[: free.text.index(stop)]
        assert output.token_ids == free.token_ids[: len(output.token_ids)]
        kept = model.generate("abc", SamplingParams(**params, stop=stop, include_stop_str_in_output=True))[0].outputs[0]
        assert kept.text == output.text + stop

    def test_samples_of_one_prompt(self, model: Model) -> None:
        output = model.generate("abc", SamplingParams(n=4, seed=5, max_tokens=12, ignore_eos=True))[0]
        assert [sample.index for sample in output.outputs] == [0, 1, 2, 3]
        assert len({sample.token_ids for sample in output.outputs}) > 1
        again = model.generate("abc", SamplingParams(n=4, seed=5, max_tokens=12, ignore_eos=True))[0]
        assert [s.token_ids for s in again.outputs] == [s.token_ids for s in output.outputs]
        one = model.generate("abc", SamplingParams(n=1, seed=5, max_tokens=12, ignore_eos=True))[0]
        assert one.outputs[0].token_ids == output.outputs[0].token_ids

    def test_without_a_seed_samples_differ(self, model: Model) -> None:
        outputs = model.generate(["abc"] * 6, SamplingParams(max_tokens=12, ignore_eos=True, temperature=2.0))
        assert len({ids(output) for output in outputs}) > 1

    def test_logprobs_are_those_of_the_logits(self, model: Model) -> None:
        prompt = model.tokenizer.encode("hello there")
        output = model.generate(
            prompt, SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True)
        )[0]
        sample = output.outputs[0]
        tokens = [*prompt, *sample.token_ids]
        count = len(tokens)
        width = 512 // 16
        logits = model.forward(
            token_ids=tokens, positions=range(count), slots=range(count), seq_begin=[0, count], context_len=[count],
            block_table=[*range(2), *[-1] * (width - 2)], logit_rows=range(count),
        ).astype(np.float64)  # fmt: skip
        logprobs = (
            logits
            - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
            - logits.max(axis=1, keepdims=True)
        )
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(prompt)
        assert sample.logprobs is not None
        entries = [*output.prompt_logprobs[1:], *sample.logprobs]
        for position, entry in enumerate(entries):
            row = logprobs[position]
            own = entry[tokens[position + 1]]
            assert own.logprob == pytest.approx(row[tokens[position + 1]], abs=1e-4)
            assert own.rank == 1 + (row > row[tokens[position + 1]] + 1e-9).sum()
            top = 2 if position < len(prompt) - 1 else 3
            best = set(np.argsort(-row)[:top].tolist())
            assert set(entry) == best | {tokens[position + 1]}
        assert sample.cumulative_logprob == pytest.approx(
            sum(e[t].logprob for e, t in zip(sample.logprobs, sample.token_ids, strict=True))
        )

    def test_stream_equals_generate(self, model: Model) -> None:
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=1)
        pieces = list(model.stream("abc", params))
        output = model.generate("abc", params)[0].outputs[0]
        assert "".join(map(str, pieces)) == output.text
        assert tuple(token for piece in pieces for token in piece.token_ids) == output.token_ids
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]

    def test_ending_a_stream_early_cancels_it(self, model: Model) -> None:
        stream = model.stream("abc", SamplingParams(max_tokens=400, ignore_eos=True))
        next(stream)
        stream.close()
        wait_until_idle(model)

    def test_prefix_cache_is_reported(self, model: Model) -> None:
        prompt = list(range(50, 100))
        first, second = (model.generate(prompt, GREEDY)[0] for _ in range(2))
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
        assert ids(first) == ids(second)


def wait_until_idle(model: Model) -> None:
    deadline = time.monotonic() + 120
    while model.stats()["num_running"] or model.stats()["num_waiting"]:
        assert time.monotonic() < deadline
    stats = model.stats()
    assert stats["num_free_blocks"] == stats["num_blocks"]


def test_threads_share_a_model(model: Model) -> None:
    prompts = [f"thread {i}" for i in range(12)]
    expected = [ids(model.generate(prompt, GREEDY)[0]) for prompt in prompts]
    results: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        results[index] = ids(model.generate(prompts[index], GREEDY)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(12)] == expected


def test_interrupting_generate_leaves_the_model_usable(model: Model) -> None:
    expected = ids(model.generate("abc", GREEDY)[0])

    def interrupt() -> None:
        while not model.stats()["num_running"]:
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = model.stats()["output_tokens"]
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate(["abc"] * 3000, SamplingParams(max_tokens=500, ignore_eos=True))
    interrupter.join()
    assert model.stats()["output_tokens"] - before < 3000 * 500 / 10  # it did not go on to the end
    wait_until_idle(model)
    assert ids(model.generate("abc", GREEDY)[0]) == expected


class TestForward:
    """Step batches that do not fit are refused, whatever is wrong with them."""

    GOOD: ClassVar[dict[str, Any]] = {
        "token_ids": [1, 2, 3, 4],
        "positions": [0, 1, 2, 0],
        "slots": [16, 17, 18, 32],
        "seq_begin": [0, 3, 4],
        "context_len": [3, 1],
        "block_table": [[1, *[-1] * 31], [2, *[-1] * 31]],
        "logit_rows": [2, 3],
    }

    def test_good(self, model: Model) -> None:
        assert model.forward(**self.GOOD).shape == (2, 257)
        assert model.forward(**{**self.GOOD, "logit_rows": []}).shape == (0, 257)

    def test_it_overwrites_the_cache(self, model: Model) -> None:
        """So no request may find a prefix there afterwards."""
        prompt = list(range(60, 110))
        expected = ids(model.generate(prompt, GREEDY)[0])
        assert model.generate(prompt, GREEDY)[0].num_cached_tokens == 48
        model.forward(**self.GOOD)
        again = model.generate(prompt, GREEDY)[0]
        assert (again.num_cached_tokens, ids(again)) == (0, expected)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"token_ids": [1, 2, 3, 257]}, r"token_ids\[3\] is 257, expected 0 to 256"),
            ({"token_ids": []}, "token_ids has 0 tokens"),
            ({"token_ids": [1] * 600}, "token_ids has 600 tokens, expected 1 to 512"),
            ({"positions": [0, 1, 2]}, "positions has 3 elements"),
            ({"positions": [0, 2, 1, 0]}, r"positions\[1\] is 2, expected 1"),
            (
                {"slots": [16, 17, 19, 32]},
                r"slots\[2\] is 19, but the block table of sequence 0 puts position 2 at slot 18",
            ),
            ({"slots": [-1, 17, 18, 32]}, r"slots\[0\] is -1"),
            ({"seq_begin": [0, 3]}, "seq_begin has 2 elements, expected 3"),
            ({"seq_begin": [0, 3, 5]}, "seq_begin runs from 0 to 5, expected 0 to 4"),
            ({"seq_begin": [0, 4, 4]}, "expected at least one token for sequence 1"),
            ({"seq_begin": [0, 9, 4]}, "seq_begin goes from 9 to 4"),
            ({"context_len": [2, 1]}, r"context_len\[0\] is 2, expected 3 to 512"),
            ({"context_len": [3, 600]}, r"context_len\[1\] is 600"),
            ({"block_table": [[1] * 32]}, "block_table has 32 elements, expected 2 sequences x 32 blocks"),
            ({"block_table": [[-1] * 32, [2] * 32]}, r"block_table\[0\]\[0\] is -1"),
            ({"block_table": [[1 << 30] * 32, [2] * 32]}, r"block_table\[0\]\[0\] is 1073741824"),
            ({"logit_rows": [4]}, "logit_rows must ascend within 0 to 3, found 4"),
            ({"logit_rows": [2, 2]}, "found 2 after 2"),
            ({"token_ids": [0.5] * 4}, "token_ids has elements of type float64"),
        ],
    )
    def test_bad(self, model: Model, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RequestError, match=message):
            model.forward(**{**self.GOOD, **changes})

    def test_refused_while_requests_are_served(self, smollm2: Model) -> None:
        batch = {**self.GOOD, "block_table": [[1, *[-1] * 127], [2, *[-1] * 127]]}
        stream = smollm2.stream("abc", SamplingParams(max_tokens=1000, ignore_eos=True))
        next(stream)
        with pytest.raises(RequestError, match=r"forward\(\) was called while requests are being served"):
            smollm2.forward(**batch)
        stream.close()
        wait_until_idle(smollm2)
        assert smollm2.forward(**batch).shape == (2, 49152)


class TestLoading:
    """Options of from_pretrained."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"max_model_length": 3},
                "unknown option of from_pretrained 'max_model_length'; did you mean 'max_model_len'",
            ),
            ({"num_threads": 0}, "num_threads is 0, expected a positive integer"),
            ({"num_threads": 5000}, "num_threads is 5000"),
            ({"block_size": 20}, "block_size is 20, but this backend .* needs a multiple of 16"),
            ({"block_size": "16"}, "block_size is '16'"),
            ({"num_blocks": -1}, "num_blocks is -1"),
            ({"max_model_len": 1000}, "max_model_len is 1000, but .* was trained for 512 tokens"),
            ({"max_num_seqs": 600}, "max_num_batched_tokens is 512, expected 600 to 65536"),
            ({"dtype": "int8"}, "dtype is 'int8', expected one of float32, float16, bfloat16"),
            ({"activation_dtype": "float16"}, "activation_dtype is float16, which the cpu backend does not have"),
        ],
    )
    def test_options_that_cannot_be(
        self, tiny_model: Callable[[str], Path], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            Model.from_pretrained(tiny_model("llama_mha"), **options)

    def test_unknown_backend(self, tiny_model: Callable[[str], Path]) -> None:
        from llm_boost import BackendError

        with pytest.raises(BackendError, match=r"backend 'cuda' is not available in this build; available: .*cpu"):
            Model.from_pretrained(tiny_model("llama_mha"), backend="cuda")

    def test_unknown_instruction_set(self, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_BOOST_ISA", "sse9")
        with pytest.raises(
            ConfigError, match=r"LLM_BOOST_ISA is 'sse9', expected one of the levels that this machine has: .*scalar"
        ):
            Model.from_pretrained(tiny_model("llama_mha"))

    def test_without_a_tokenizer(self, tiny_model: Callable[[str], Path]) -> None:
        with Model.from_pretrained(tiny_model("llama_wide_heads")) as model:
            assert len(ids(model.generate([1, 2, 3], GREEDY)[0])) > 0
            with pytest.raises(TokenizerError, match="has no tokenizer; give prompts as token ids"):
                model.generate("text", GREEDY)
            with pytest.raises(TokenizerError, match="stop strings need a tokenizer"):
                model.generate([1, 2], SamplingParams(stop="x"))

    def test_a_closed_model(self, tiny_model: Callable[[str], Path]) -> None:
        model = Model.from_pretrained(tiny_model("llama_mha"))
        model.close()
        with pytest.raises(RequestError, match="the model is closed"):
            model.generate("x")

    def test_a_request_that_can_never_fit(self, tiny_model: Callable[[str], Path]) -> None:
        with Model.from_pretrained(tiny_model("llama_mha"), num_blocks=3, max_model_len=512) as model:
            with pytest.raises(
                RequestError,
                match=r"may reach 110 tokens .* takes 7 blocks of 16, but the cache has 3; lower max_tokens",
            ):
                model.generate([1] * 10, SamplingParams(max_tokens=100))
            assert len(model.generate([[1] * 10] * 5, SamplingParams(max_tokens=38, ignore_eos=True))) == 5

    def test_default_parameters_come_from_the_model(self, model: Model) -> None:
        assert model.default_sampling_params() == SamplingParams(temperature=0, max_tokens=256)
