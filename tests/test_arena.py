"""The arena planner over random lifetimes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_boost import _testing

lifetimes = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 9), st.integers(0, 9)).map(lambda t: (t[0], min(t[1:]), max(t[1:]))),
    max_size=20,
)


@given(lifetimes=lifetimes, alignment=st.sampled_from([1, 16, 64]))
def test_live_buffers_never_share_a_byte(lifetimes: list[tuple[int, int, int]], alignment: int) -> None:
    offsets, total = _testing.plan_arena(lifetimes, alignment)
    placed = [
        (offset, offset + size, first, last) for offset, (size, first, last) in zip(offsets, lifetimes, strict=True)
    ]
    for i, (begin, end, first, last) in enumerate(placed):
        assert begin % alignment == 0
        assert 0 <= begin <= end <= total
        for other_begin, other_end, other_first, other_last in placed[:i]:
            if first <= other_last and other_first <= last:
                assert end <= other_begin or other_end <= begin or begin == end or other_begin == other_end
    # Never worse than giving each buffer a place of its own, never better than what is live at once.
    rounded = [-(-size // alignment) * alignment for size, _, _ in lifetimes]
    assert total <= sum(rounded)
    assert total >= max(
        (sum(size for size, first, last in lifetimes if first <= t <= last) for t in range(10)), default=0
    )


def test_a_chain_of_equal_buffers_needs_room_for_two() -> None:
    assert _testing.plan_arena([(100, i, i + 1) for i in range(8)], 1)[1] == 200
