"""`LlmBoostForCausalLM.generate` and `chat`, as a predict run calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore_loop import PAD, PROMPTS, SEQ_LENGTH, config_of, drive, parameters_of
from reference.tiny_models import TINY_SPECS, write_tiny_model

from llm_boost import Model
from llm_boost.errors import RequestError
from llm_boost.integrations.mindspore import LlmBoostForCausalLM


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), TINY_SPECS["llama_mha"])


@pytest.fixture(scope="module")
def network(directory: Path) -> LlmBoostForCausalLM:
    network = LlmBoostForCausalLM(config_of(TINY_SPECS["llama_mha"], max_decode_length=60))
    network.llm_boost.set_weights(parameters_of(directory))
    return network


def test_generate(network: LlmBoostForCausalLM) -> None:
    expected = drive(network, PROMPTS, 60, 256, lambda array: array)
    found = network.generate(PROMPTS)
    assert [row.dtype for row in found] == [np.int32] * 4
    assert [row.tolist() for row in found] == expected
    padded = np.zeros((4, 50), np.int64)
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = prompt
    assert [row.tolist() for row in network.generate(padded)] == expected
    assert [row.tolist() for row in network.generate(PROMPTS[0])] == expected[:1]
    assert [row.tolist() for row in network.generate(PROMPTS, max_new_tokens=3)] == [
        row[: len(prompt) + 3] for row, prompt in zip(expected, PROMPTS, strict=True)
    ]


def test_max_new_tokens_of_the_config(network: LlmBoostForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.config, "max_new_tokens", 3)
    assert len(network.generate(PROMPTS[0])[0]) == 8
    assert len(network.generate(PROMPTS[0], max_length=20)[0]) == 20
    monkeypatch.setattr(network.config, "max_new_tokens", None)
    assert len(network.generate(PROMPTS[0])[0]) == 60


def test_real_tokens_that_look_like_padding_can_be_kept(network: LlmBoostForCausalLM) -> None:
    array = np.array([[7, 8, PAD, PAD], [7, 8, 9, 10]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    trimmed, kept = network.generate(array, max_length=8), network.generate(array, attention_mask=mask, max_length=8)
    assert trimmed[0].tolist() == network.generate([[7, 8]], max_length=8)[0].tolist()
    assert kept[0].tolist()[:3] == [7, 8, PAD]
    assert network.generate([[7, 8, PAD], [1, 2]], max_length=8)[0].tolist() == kept[0].tolist()
    with pytest.raises(RequestError, match="prompt 0 is empty or all padding"):
        network.generate([[PAD, PAD], [1, 2]])


def test_generation_options(network: LlmBoostForCausalLM) -> None:
    prompt = PROMPTS[0]
    (greedy,) = network.generate(prompt, max_length=20)
    assert len(greedy) == 20
    stop = int(greedy[9])
    (ended,) = network.generate(prompt, max_length=20, eos_token_id=stop)
    assert ended.tolist() == greedy[: greedy.tolist().index(stop, len(prompt)) + 1].tolist()
    (longer,) = network.generate(prompt, max_length=20, min_length=15, eos_token_id=[stop])
    assert len(longer) >= 15
    first, again, other = (
        network.generate(prompt, max_length=30, do_sample=True, top_k=0, temperature=5.0, seed=seed)[0].tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(network.generate(prompt, max_length=10_000)[0]) <= SEQ_LENGTH
    for options, message in [
        ({"max_lenght": 5}, "did you mean 'max_length'"),
        ({"num_beams": 2}, "unknown option of generate 'num_beams'"),
        ({"max_new_tokens": "3"}, "max_new_tokens is '3', expected a number of tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1, expected a number of tokens"),
        ({"input_ids": None}, "input_ids is None, expected the tokens of a prompt, or of several"),
        ({"max_length": 5}, "a prompt has 5 tokens, but max_length is 5"),
    ]:
        with pytest.raises(RequestError, match=message):
            network.generate(**{"input_ids": prompt, **options})


def test_streamer(network: LlmBoostForCausalLM) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.values: list[Any] = []

        def put(self, value: Any) -> None:
            self.values.append(value.tolist())

        def end(self) -> None:
            self.values.append("end")

    streamer = Streamer()
    (tokens,) = network.generate(PROMPTS[0], streamer=streamer, max_length=10)
    assert streamer.values == [[PROMPTS[0]], *([token] for token in tokens.tolist()[5:]), "end"]
    with pytest.raises(RequestError, match="a streamer was given for 4 prompts"):
        network.generate(PROMPTS, streamer=streamer)


def test_chat(network: LlmBoostForCausalLM, directory: Path) -> None:
    with Model.from_pretrained(directory, use_tqdm=False) as model:
        tokenizer = model.tokenizer
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    answer, messages = network.chat(tokenizer, "c", history, do_sample=False, max_length=60)
    assert messages == [*history, {"role": "user", "content": "c"}, {"role": "assistant", "content": answer}]
    assert len(history) == 2
    prompt = tokenizer.encode(tokenizer.apply_chat_template(messages[:-1]))
    (tokens,) = network.generate([prompt], max_length=60)
    assert answer == tokenizer.decode(tokens[len(prompt) :].tolist())
    _, with_system = network.chat(tokenizer, "c", system="s", do_sample=False, max_length=60)
    assert with_system[0] == {"role": "system", "content": "s"}
