"""The engine over a program that checks every slot and block table: whatever happens, each request gets its own tokens.

The fake model's next token is a hash of the whole context as read back from the cache, so a wrong slot, a block shared
when it should have been copied, or a stale prefix changes the output.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_boost import BackendError, RequestError, _testing

BLOCK = 4


def expected_output(engine: Any, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(engine.next(tokens))
    return tokens[len(prompt) :]


class Collector:
    """Gathers the events of an engine by sample."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.outputs: dict[tuple[int, int], list[int]] = {}
        self.finished: dict[tuple[int, int], str] = {}
        self.prompt_positions: dict[int, list[int]] = {}

    def step(self) -> bool:
        more, events = self.engine.step()
        for request, sample, token, prompt_position, finish in events:
            if prompt_position >= 0:
                self.prompt_positions.setdefault(request, []).append(prompt_position)
                continue
            assert (request, sample) not in self.finished, "an event after the end"
            if token >= 0:
                self.outputs.setdefault((request, sample), []).append(token)
            if finish:
                self.finished[request, sample] = finish
        return bool(more)

    def run(self) -> None:
        steps = 0
        while self.step():
            steps += 1
            assert steps < 10_000, "no end in sight"


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=20),  # few different tokens: prompts share prefixes
        st.integers(1, 16),
        st.integers(1, 3),
        st.integers(0, 12),  # steps before it is added
        st.one_of(st.none(), st.integers(0, 10)),  # steps after which it is cancelled
        st.one_of(st.none(), st.integers(0, 2)),  # the sample that is, or all
        st.booleans(),  # prompt logprobs
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(
    plan=requests,
    num_blocks=st.integers(9, 20),
    max_tokens=st.integers(4, 24),
    mixes=st.booleans(),
    prefix_caching=st.booleans(),
)
def test_every_request_gets_its_own_tokens(
    plan: Any, num_blocks: int, max_tokens: int, mixes: bool, prefix_caching: bool
) -> None:
    engine = _testing.FakeEngine(
        num_blocks=num_blocks, block_size=BLOCK, max_tokens=max_tokens, max_sequences=4, max_model_len=36,
        mixes=mixes, prefix_caching=prefix_caching, max_logit_rows=4,
    )  # fmt: skip
    collector = Collector(engine)
    added_at: dict[int, int] = {}
    for step in range(40):
        for request, (prompt, count, n, start, cancel_after, victim, logprobs) in enumerate(plan):
            if step == start:
                engine.add(request, prompt, count, n, 0 if logprobs else -1)
                added_at[request] = step
            if cancel_after is not None and step == start + cancel_after:
                engine.cancel(request, victim)
        collector.step()
    collector.run()
    for request, (prompt, count, n, _, cancel_after, victim, logprobs) in enumerate(plan):
        want = expected_output(engine, prompt, count)
        for sample in range(n):
            got = collector.outputs.get((request, sample), [])
            if collector.finished[request, sample] == "length":
                assert got == want
            else:
                assert collector.finished[request, sample] == "abort"
                assert cancel_after is not None
                assert victim in (None, sample)
                assert got == want[: len(got)]
        if logprobs and collector.finished[request, 0] != "abort":
            assert collector.prompt_positions.get(request, []) == list(range(1, len(prompt)))
    stats = engine.stats()
    assert stats["num_running"] == stats["num_waiting"] == 0
    assert stats["num_free_blocks"] == stats["num_blocks"]


def test_too_few_blocks_still_finish_everything_that_fits() -> None:
    engine = _testing.FakeEngine(num_blocks=6, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=24)
    prompts = [[i, i + 1, i + 2] for i in range(10)]
    for request, prompt in enumerate(prompts):
        engine.add(request, prompt, 21)
    collector = Collector(engine)
    collector.run()
    assert engine.stats()["num_preemptions"] > 0
    for request, prompt in enumerate(prompts):
        assert collector.outputs[request, 0] == expected_output(engine, prompt, 21)


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    engine = _testing.FakeEngine(num_blocks=3, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    with pytest.raises(
        RequestError, match=r"14 tokens \(prompt 4 \+ max_tokens 10\).* takes 4 blocks of 4, but the cache has 3"
    ):
        engine.add(0, [1, 2, 3, 4], 10)
    engine.add(0, [1, 2, 3, 4], 8)


def test_the_same_prefix_is_computed_once() -> None:
    engine = _testing.FakeEngine(num_blocks=40, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    prompt = list(range(30))
    for request in range(3):
        engine.add(request, prompt, 3)
        collector = Collector(engine)
        collector.run()
        assert collector.outputs[request, 0] == expected_output(engine, prompt, 3)
    assert engine.stats()["prefix_hits"] == 2 * 28  # whole blocks of all but the last token


def test_after_a_backend_failure_the_engine_goes_on() -> None:
    engine = _testing.FakeEngine(num_blocks=20, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    engine.add(0, [1, 2, 3], 5)
    engine.step()
    engine.fail_next()
    with pytest.raises(BackendError):
        engine.step()
    assert engine.stats()["num_free_blocks"] == 20
    engine.add(1, [4, 5], 4)
    collector = Collector(engine)
    collector.run()
    assert collector.outputs == {(1, 0): expected_output(engine, [4, 5], 4)}


def test_after_a_backend_failure_no_prefix_is_trusted() -> None:
    engine = _testing.FakeEngine(num_blocks=20, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    prompt = list(range(9))
    engine.add(0, prompt, 3)
    Collector(engine).run()
    engine.add(1, prompt, 3)
    engine.fail_next()
    with pytest.raises(BackendError):
        engine.step()
    assert engine.stats()["prefix_hits"] == 8  # of the request that failed
    engine.add(2, prompt, 3)
    Collector(engine).run()
    assert engine.stats()["prefix_hits"] == 8


def test_what_was_preempted_goes_on_before_what_has_not_begun() -> None:
    engine = _testing.FakeEngine(num_blocks=6, block_size=BLOCK, max_tokens=16, max_sequences=2, max_model_len=24)
    for request in range(3):
        engine.add(request, [request, 7, 8], 21)
    collector = Collector(engine)
    for step in range(1, 22):
        collector.step()
        assert len(collector.outputs[0, 0]) == step  # the oldest waits for nobody
        assert (2, 0) not in collector.outputs
    collector.run()
    assert engine.stats()["num_preemptions"] > 0
    assert list(collector.finished) == [(0, 0), (1, 0), (2, 0)]


def test_samples_count_before_they_split_off() -> None:
    engine = _testing.FakeEngine(num_blocks=40, block_size=BLOCK, max_tokens=16, max_sequences=4, max_model_len=64)
    for request in range(2):
        engine.add(request, [request, 7, 8], 3, 3)
    collector = Collector(engine)
    running = []
    while collector.step():
        running.append(engine.stats()["num_running"])
    assert max(running) == 3  # a second request of three samples would make six
    assert len(collector.finished) == 6


def test_a_cancelled_request_frees_its_blocks_in_the_next_step() -> None:
    engine = _testing.FakeEngine(num_blocks=20, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    engine.add(0, list(range(9)), 30, 2)
    engine.add(1, [1, 2, 3], 30)
    for _ in range(3):
        engine.step()
    engine.cancel(0)
    engine.step()
    stats = engine.stats()
    assert (stats["num_running"], stats["num_blocks"] - stats["num_free_blocks"]) == (1, 2)


def test_one_sample_can_be_cancelled_once_it_has_begun() -> None:
    engine = _testing.FakeEngine(num_blocks=20, block_size=BLOCK, max_tokens=16, max_sequences=8, max_model_len=64)
    engine.add(0, [1, 2, 3], 8, 3)
    collector = Collector(engine)
    engine.cancel(0, 0)  # its prompt has not been computed, and is that of all three
    for _ in range(3):
        collector.step()
    assert engine.stats()["num_running"] == 3
    engine.cancel(0, 1)
    engine.cancel(0, 7)
    collector.step()
    stats = engine.stats()
    assert (stats["num_running"], stats["num_blocks"] - stats["num_free_blocks"]) == (2, 4)
    collector.run()
    want = expected_output(engine, [1, 2, 3], 8)
    assert collector.finished == {(0, 0): "length", (0, 1): "abort", (0, 2): "length"}
    assert collector.outputs == {(0, 0): want, (0, 1): want[:3], (0, 2): want}


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    engine = _testing.FakeEngine(num_blocks=64, block_size=BLOCK, max_tokens=8, max_sequences=4, max_model_len=128)
    engine.add(0, [1], 30)
    collector = Collector(engine)
    collector.step()
    engine.add(1, list(range(1, 50)), 2)
    for step in range(2, 9):
        collector.step()
        assert len(collector.outputs[0, 0]) == step
    assert (1, 0) in collector.outputs


class TestTokenMasks:
    """A constrained sample waits for the mask of its next token, and nobody else does."""

    VOCAB = 50

    @staticmethod
    def words(allowed: set[int]) -> list[int]:
        bits = sum(1 << token for token in allowed)
        return [bits & 0xFFFFFFFF, bits >> 32]

    def allowed(self, request: int, sample: int, position: int) -> set[int]:
        random = Random(f"{request} {sample if position else 0} {position}")
        return set(random.sample(range(self.VOCAB), random.choice([1, 2, 20, 49])))

    def expected(self, engine: Any, request: int, sample: int, prompt: list[int], count: int) -> list[int]:
        tokens = list(prompt)
        for position in range(count):
            allowed = self.allowed(request, sample, position)
            best = engine.next(tokens)
            tokens.append(best if best in allowed else min(allowed))  # the fake model's other logits are all alike
        return tokens[len(prompt) :]

    @settings(max_examples=150, deadline=None)
    @given(
        plan=st.lists(
            st.tuples(
                st.lists(st.integers(0, 2), min_size=1, max_size=14), st.integers(1, 10), st.integers(1, 3),
                st.booleans(), st.integers(0, 4),
            ),
            min_size=1,
            max_size=8,
        ),
        num_blocks=st.integers(6, 16),
        mixes=st.booleans(),
    )  # fmt: skip
    def test_every_token_is_allowed_and_the_best(self, plan: Any, num_blocks: int, mixes: bool) -> None:
        engine = _testing.FakeEngine(
            num_blocks=num_blocks, block_size=BLOCK, max_tokens=12, max_sequences=4, max_model_len=24, mixes=mixes,
            max_logit_rows=4, vocab_size=self.VOCAB,
        )  # fmt: skip
        for request, (prompt, count, n, constrained, _) in enumerate(plan):
            mask = self.words(self.allowed(request, 0, 0)) if constrained else []
            engine.add(request, prompt, count, n, -1, mask)
        collector = Collector(engine)
        due: dict[int, list[tuple[int, int, int]]] = {}  # step -> masks that are ready then
        given: dict[tuple[int, int], int] = {}
        for step in range(2000):
            for request, sample, position in due.pop(step, []):
                engine.set_token_mask(request, sample, self.words(self.allowed(request, sample, position)))
            more = collector.step()
            for (request, sample), tokens in collector.outputs.items():
                *_, constrained, delay = plan[request]
                if constrained and given.get((request, sample)) != len(tokens):
                    given[request, sample] = len(tokens)
                    due.setdefault(step + 1 + delay, []).append((request, sample, len(tokens)))
            if not more and not due:
                break
        for request, (prompt, count, n, constrained, _) in enumerate(plan):
            for sample in range(n):
                free = expected_output(engine, prompt, count)
                want = self.expected(engine, request, sample, prompt, count) if constrained else free
                assert collector.outputs[request, sample] == want
        stats = engine.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]

    def test_others_go_on_meanwhile(self) -> None:
        engine = _testing.FakeEngine(num_blocks=40, block_size=BLOCK, max_tokens=16, max_sequences=4, max_model_len=64)
        engine.add(0, [1, 2], 5, mask=self.words({7}))
        engine.add(1, [3], 6)
        collector = Collector(engine)
        for _ in range(6):
            collector.step()
        assert collector.outputs[0, 0] == [7]
        assert collector.finished == {(1, 0): "length"}
        assert not collector.step()
        engine.cancel(0)
        collector.step()
        assert collector.finished[0, 0] == "abort"
        assert engine.stats()["num_free_blocks"] == 40

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ([1], "has 1 words, expected 2 for 50 tokens"),
            ([0, 0], "allows no token"),
            ([0, 1 << 20], "allows no token"),
        ],
    )
    def test_bad_masks(self, mask: list[int], message: str) -> None:
        engine = _testing.FakeEngine(num_blocks=40, block_size=BLOCK, max_tokens=16, max_sequences=4, max_model_len=64)
        with pytest.raises(RequestError, match=message):
            engine.add(0, [1], 2, mask=mask)
        engine.add(0, [1], 2, mask=[0, 1])
        with pytest.raises(RequestError, match=message):
            engine.set_token_mask(0, 0, mask)
