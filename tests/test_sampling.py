"""The sampler against Hugging Face's semantics, written out in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_boost import RequestError, SamplingParams, _core, _testing

LEVELS = _core.isa_levels()


def processed(
    logits: np.ndarray, prompt: Sequence[int], output: Sequence[int], p: SamplingParams, eos: Sequence[int]
) -> np.ndarray:
    """Logits after bias, penalties and minimum length, as transformers' processors define them."""
    x = logits.astype(np.float64)
    for token, bias in (p.logit_bias or {}).items():
        x[token] += bias
    seen = sorted({*prompt, *output})
    x[seen] = np.where(x[seen] > 0, x[seen] / p.repetition_penalty, x[seen] * p.repetition_penalty)
    counts = np.bincount(list(output), minlength=len(x)) if output else np.zeros(len(x))
    x -= p.presence_penalty * (counts > 0) + p.frequency_penalty * counts
    if len(output) < p.min_tokens:
        x[[*eos, *p.stop_token_ids]] = -np.inf
    return x


def distribution(x: np.ndarray, p: SamplingParams) -> np.ndarray:
    """Probabilities after temperature, top_k, top_p and min_p, in that order."""
    x = x / p.temperature
    if 0 < p.top_k < len(x):
        x = np.where(x >= np.sort(x)[-p.top_k], x, -np.inf)
    probabilities = np.exp(x - x.max())
    probabilities /= probabilities.sum()
    if p.top_p < 1:
        order = np.lexsort((np.arange(len(x)), -probabilities))
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= p.top_p]] = 0
    probabilities[probabilities < p.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def choose(
    isa: str,
    logits: np.ndarray,
    p: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos: Sequence[int] = (),
) -> int:
    return int(_testing.choose(isa, logits.tolist(), list(prompt), list(output), p.to_core(max_tokens=100), list(eos)))


CASES = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 5},
    "top_k beyond the vocabulary": {"top_k": 5000},
    "top_p": {"top_p": 0.7},
    "top_p of one token": {"top_p": 0.01},
    "min_p": {"min_p": 0.2},
    "top_k and top_p": {"top_k": 20, "top_p": 0.8, "temperature": 1.5},
    "all": {
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "temperature": 0.8,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
    },
    "bias": {"logit_bias": {3: 4.0, 5: -100.0}},
}


@pytest.mark.parametrize("isa", [LEVELS[0], LEVELS[-1]])
@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_reference_distribution(isa: str, case: str) -> None:
    logits = (np.random.default_rng(4).standard_normal(700) * 2).astype(np.float32)
    prompt, output = [1, 2, 2, 9], [3, 3, 4]
    params = [SamplingParams(seed=seed, **CASES[case]) for seed in range(3000)]
    expected = distribution(processed(logits, prompt, output, params[0], []), params[0])
    counts = np.bincount([choose(isa, logits, p, prompt, output) for p in params], minlength=len(logits))
    assert (counts[expected == 0] == 0).all(), "a token that the filters exclude"
    deviation = np.abs(counts - 3000 * expected) / np.sqrt(3000 * expected * (1 - expected) + 1)
    assert deviation.max() < 5.0


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_greedy_is_the_argmax_of_the_processed_logits(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(5, 80))
    ids = st.integers(0, vocab - 1)
    logits = np.array(data.draw(st.lists(st.floats(-20, 20, width=16), min_size=vocab, max_size=vocab)), np.float32)
    prompt, output = data.draw(st.lists(ids, max_size=6)), data.draw(st.lists(ids, max_size=6))
    p = SamplingParams(
        temperature=0,
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.5, 0.5])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.75, -1.0])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.25])),
        min_tokens=data.draw(st.integers(0, 4)),
        stop_token_ids=data.draw(st.lists(ids, max_size=2)),
        logit_bias=data.draw(st.dictionaries(ids, st.sampled_from([-3.0, 2.5]), max_size=3)),
    )
    eos = data.draw(st.lists(ids, max_size=2))
    expected = processed(logits, prompt, output, p, eos)
    for isa in LEVELS:
        token = choose(isa, logits, p, prompt, output, eos)
        assert expected[token] == pytest.approx(expected.max(), abs=1e-4)


def test_ties_go_to_the_lowest_token() -> None:
    logits = np.array([0, 7, 7, 1] * 10, np.float32)
    assert all(choose(isa, logits, SamplingParams(temperature=0)) == 1 for isa in LEVELS)


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits = np.array([3, 2, 2, 2, 1], np.float32)
    assert {choose(LEVELS[0], logits, SamplingParams(top_k=2, seed=seed)) for seed in range(300)} == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_token_at_every_level() -> None:
    logits = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    for seed in range(50):
        for values in ({}, {"top_k": 50}, {"top_p": 0.9}):
            assert len({choose(isa, logits, SamplingParams(seed=seed, **values)) for isa in LEVELS}) == 1


def uniform(seed: int) -> float:
    """The first number in [0, 1) that SplitMix64 gives for a seed."""
    mask = 2**64 - 1
    x = (seed + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return float((x ^ (x >> 31)) >> 11) * 2.0**-53


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_restricted_sample_is_the_inverse_of_the_distribution_in_order_of_likelihood(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(20, 3000))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    spread = data.draw(st.sampled_from([0.0, 0.3, 3.0]))
    logits = generator.standard_normal(vocab) * spread
    if data.draw(st.booleans()):
        logits = np.round(logits * 2) / 2  # many equal ones
    logits = logits.astype(np.float32)
    seed = data.draw(st.integers(0, 2**32))
    p = SamplingParams(
        seed=seed,
        top_k=data.draw(st.sampled_from([0, 7, 100])),
        top_p=data.draw(st.sampled_from([0.05, 0.5, 0.9, 0.999])),
        min_p=data.draw(st.sampled_from([0.0, 0.01, 0.3])),
    )
    exact = logits.astype(np.float64)
    order = np.lexsort((np.arange(vocab), -exact))
    unfiltered = distribution(exact, replace(p, top_p=1.0, min_p=0.0))[order]
    sums = np.cumsum(distribution(exact, p)[order])
    edges = (np.cumsum(unfiltered) - p.top_p, unfiltered / unfiltered[0] - p.min_p, sums - uniform(seed))
    assume(all(np.abs(edge).min() > 1e-5 for edge in edges))  # at an edge, f32 weights may fall to either side
    expected = order[np.searchsorted(sums, uniform(seed), side="right")]
    assert {choose(isa, logits, p) for isa in LEVELS} == {expected}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_choose_nothing(bad: float) -> None:
    assert choose(LEVELS[0], np.full(40, bad, np.float32), SamplingParams()) == -1


class TestParams:
    """Names and types of SamplingParams."""

    def test_aliases(self) -> None:
        p = SamplingParams(
            max_new_tokens=5,
            min_new_tokens=2,
            num_return_sequences=3,
            stop_strings=["a"],
            do_sample=False,
            temperature=0.7,
        )
        assert (p.max_tokens, p.min_tokens, p.n, p.stop, p.temperature) == (5, 2, 3, ("a",), 0.0)
        assert SamplingParams(do_sample=True, temperature=0.7).temperature == 0.7

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"top_pp": 0.5}, "unknown sampling parameter 'top_pp'; did you mean 'top_p'"),
            ({"max_tokens": 4, "max_new_tokens": 5}, "max_tokens is given twice, also as max_new_tokens"),
            ({"temperature": float("nan")}, "temperature is nan, expected a finite number"),
            ({"temperature": "hot"}, "temperature is 'hot', expected a finite number"),
            ({"top_p": True}, "top_p is True"),
            ({"top_k": 1.5}, "top_k is 1.5, expected an integer"),
            ({"n": -1}, "n is -1"),
            ({"max_tokens": 1 << 40}, "max_tokens is 1099511627776"),
            ({"seed": 1 << 70}, "seed is"),
            ({"stop": 3}, "stop is 3, expected a list"),
            ({"stop": [1]}, "stop is .*, expected strings"),
            ({"stop_token_ids": "ab"}, "stop_token_ids is 'ab', expected a list"),
            ({"logit_bias": [1]}, "logit_bias is .*, expected a mapping"),
            ({"logit_bias": {1: float("inf")}}, "logit_bias of 1 is inf"),
            ({"ignore_eos": 1}, "ignore_eos is 1, expected True or False"),
            ({"do_sample": "no"}, "do_sample is 'no'"),
        ],
    )
    def test_mistakes(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(RequestError, match=message):
            SamplingParams(**values)

    def test_every_field_reaches_the_core(self) -> None:
        values = {
            "n": 2,
            "max_tokens": 3,
            "min_tokens": 1,
            "temperature": 0.5,
            "top_k": 4,
            "top_p": 0.25,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "presence_penalty": 0.75,
            "frequency_penalty": -0.5,
            "seed": 9,
            "ignore_eos": True,
            "stop_token_ids": [8],
            "logprobs": 6,
            "prompt_logprobs": 7,
        }
        core = SamplingParams(**values).to_core(max_tokens=1)
        assert {name: getattr(core, name) for name in values} == values
        assert SamplingParams(logit_bias={5: 1.5}).to_core(1).logit_bias == [(5, 1.5)]
        assert SamplingParams(seed=-1).to_core(1).seed == (1 << 64) - 1

    def test_defaults_equal_the_core(self) -> None:
        ours, core = SamplingParams().to_core(max_tokens=1), _core.SamplingParams()
        names = [name for name in dir(core) if not name.startswith("_")]
        assert {name: getattr(ours, name) for name in names} == {name: getattr(core, name) for name in names}
