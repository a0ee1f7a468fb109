"""How much a server takes on at once."""

from __future__ import annotations

from llm_boost.serve.errors import ApiError


class Admission:
    """Counts samples from admission to their end. Used on the event loop alone, so that a refusal takes no time."""

    def __init__(self, running: int, waiting: int, retry_after_seconds: int) -> None:
        """Takes at most `running` samples, and `waiting` more that wait."""
        self._capacity = running + waiting
        self._retry_after = retry_after_seconds
        self._taken = 0

    @property
    def taken(self) -> int:
        """Samples that have been admitted and not released."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """Whether nothing at all can be admitted."""
        return self._taken >= self._capacity

    def require_room(self) -> None:
        """Refuses when nothing at all can be admitted; cheaper than reading a body.

        Raises:
            ApiError: With status 429.
        """
        if self.is_full:
            raise self.full()

    def admit(self, count: int) -> None:
        """Takes in so many samples.

        Raises:
            ApiError: They never fit (400), or not now (429).
        """
        if count > self._capacity:
            raise ApiError(
                400, f"the request asks for {count} samples, but this server takes at most {self._capacity} at once"
            )
        if self._taken + count > self._capacity:
            raise self.full()
        self._taken += count

    def release(self, count: int) -> None:
        """Lets go of samples that were admitted."""
        self._taken -= count

    def full(self) -> ApiError:
        """What a client is told who comes too many."""
        return ApiError(
            429,
            f"the server is full: {self._taken} samples are computed or wait; try again later",
            code="queue_full",
            headers={"Retry-After": str(self._retry_after)},
        )
