"""The block pool over random operation sequences, against a model of what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_boost import InternalError, _testing

BLOCK_SIZE = 2


class PoolMachine(RuleBasedStateMachine):
    """Holds references as sequences do, and remembers which prefix each published block stands for."""

    @initialize(num_blocks=st.integers(1, 6))
    def make(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.pool = _testing.BlockPool(num_blocks, BLOCK_SIZE)
        self.held: list[int] = []  # one entry a reference
        self.published: set[int] = set()  # blocks that were given to publish() since they were allocated
        self.text: dict[int, tuple[int, ...]] = {0: ()}  # prefix id -> all tokens up to there

    @precondition(lambda self: self.pool.num_free() > 0)
    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        assert block not in self.held, "a block in use was given away"
        self.held.append(block)
        self.published.discard(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.acquire(block)
        self.held.append(block)

    @precondition(lambda self: set(self.held) - self.published)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=BLOCK_SIZE, max_size=BLOCK_SIZE))
    def publish(self, data: st.DataObject, tokens: list[int]) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.held) - self.published)))
        before = data.draw(st.sampled_from(sorted(self.text)))
        prefix = self.pool.publish(block, before, tokens)
        self.published.add(block)
        expected = self.text[before] + tuple(tokens)
        assert self.text.setdefault(prefix, expected) == expected, "one prefix id for two texts"

    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=BLOCK_SIZE, max_size=BLOCK_SIZE))
    def find_and_use(self, data: st.DataObject, tokens: list[int]) -> None:
        before = data.draw(st.sampled_from(sorted(self.text)))
        block, prefix = self.pool.find(before, tokens)
        if block < 0:
            return
        assert self.text[prefix] == self.text[before] + tuple(tokens)
        self.pool.acquire(block)
        self.held.append(block)

    @rule()
    def clear_prefixes(self) -> None:
        self.pool.clear_prefixes()
        assert all(self.pool.find(before, [0] * BLOCK_SIZE)[0] < 0 for before in self.text)
        self.published = set(self.held)  # their content stays theirs; only the index forgot it

    @invariant()
    def counts_add_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_invariants()
        assert all(self.pool.references(block) == self.held.count(block) for block in range(self.num_blocks))
        assert self.pool.num_free() == self.num_blocks - len(set(self.held))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_least_recently_used_prefix_is_forgotten_first() -> None:
    pool = _testing.BlockPool(3, 1)
    blocks = [pool.allocate() for _ in range(3)]
    for token, block in enumerate(blocks):
        pool.publish(block, 0, [token])
    for block in (blocks[1], blocks[0], blocks[2]):
        pool.release(block)
    assert pool.allocate() == blocks[1]
    assert [pool.find(0, [token])[0] for token in range(3)] == [blocks[0], -1, blocks[2]]


def test_the_same_hash_is_not_the_same_prefix() -> None:
    first = np.array([_testing.prefix_hash(0, [token]) for token in range(1 << 18)], np.uint64)
    order = np.argsort(first)
    gaps = np.diff(first[order])  # the second token is added to the first one's hash before that is mixed again
    at = int(gaps.argmin())
    ours, other = [int(order[at]), int(gaps[at])], [int(order[at + 1]), 0]
    assert _testing.prefix_hash(0, ours) == _testing.prefix_hash(0, other)
    pool = _testing.BlockPool(2, 2)
    pool.publish(pool.allocate(), 0, ours)
    assert pool.find(0, other) == (-1, 0)
    pool.publish(pool.allocate(), 0, other)
    assert (pool.find(0, ours)[0], pool.find(0, other)[0]) == (0, 1)
    pool.check_invariants()


def test_misuse_is_an_internal_error() -> None:
    pool = _testing.BlockPool(1, 1)
    with pytest.raises(InternalError, match="free and holds nothing"):
        pool.acquire(0)
    with pytest.raises(InternalError, match="free already"):
        pool.release(0)
    pool.allocate()
    with pytest.raises(InternalError, match="num_free_ > 0"):
        pool.allocate()
