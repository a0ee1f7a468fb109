"""The engine for asyncio: requests go in from worker threads, batches of events come out on the event loop.

Three kinds of thread meet here. The core's own thread computes steps. One thread, the pump, takes what a step gave from
the core's queue, turns tokens into text, sets token masks, and wakes the event loop once a batch. The event loop owns
the `Generation` objects and everything HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence

from llm_boost import _core
from llm_boost._request import RunningRequest
from llm_boost.errors import LlmBoostError
from llm_boost.model import Model
from llm_boost.outputs import TextPiece
from llm_boost.serve.errors import ApiError
from llm_boost.serve.metrics import Metrics

_log = logging.getLogger("llm_boost.serve")
_POLL_MS = 200  # how long the pump waits before it looks whether it should end

# Pieces of the requests of one generation, by the request's index.
Pieces = list[tuple[int, TextPiece]]


class Generation:
    """The requests of one HTTP request. Belongs to the event loop, but for what the pump touches, named so."""

    def __init__(self, requests: Sequence[RunningRequest], *, streams: bool) -> None:
        """Takes requests that have not been submitted; without `streams`, pieces are not handed out."""
        self.requests = requests
        self.streams = streams
        self.ids: list[int] = []  # in the core; under the engine's lock
        self.closed = False  # likewise
        self.unfinished = len(requests)  # of the pump
        self._pieces: Pieces = []
        self._error: Exception | None = None
        self._ended = False
        self._poked = False
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, pieces: Pieces, *, ended: bool) -> None:
        """Adds pieces; wakes who waits for them."""
        self._pieces += pieces
        self._ended = self._ended or ended
        self._wake()

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        if not self._ended:
            self._error, self._ended = error, True
            self._wake()

    def poke(self) -> None:
        """Makes `batches` yield, if with nothing."""
        self._poked = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def batches(self) -> AsyncIterator[Pieces]:
        """Pieces as they come, several at a time, none after a `poke`, until all requests have ended.

        Raises:
            Exception: What `fail` was given.
        """
        while True:
            if self._pieces or self._poked:
                pieces, self._pieces, self._poked = self._pieces, [], False
                yield pieces
            elif self._error is not None:
                raise self._error
            elif self._ended:
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    async def finish(self) -> None:
        """Waits until all requests have ended. Raises what `fail` was given."""
        async for _ in self.batches():
            pass


class AsyncEngine:
    """Submits generations to a model and hands out what becomes of them."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        """Takes a loaded model; `start` begins."""
        self._core = model.core
        self._metrics = metrics
        self._queue = _core.OutputQueue()
        self._lock = threading.Lock()
        self._live: dict[int, tuple[Generation, int]] = {}  # by id in the core; under the lock
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump_thread = threading.Thread(target=self._pump, name="llm-boost-pump", daemon=True)

    def start(self) -> None:
        """Begins to hand out events on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._pump_thread.start()

    def close(self) -> None:
        """Cancels everything and ends the pump; takes a moment."""
        self._closing = True
        self._core.cancel_all(self._queue)
        self._pump_thread.join()

    @property
    def alive(self) -> bool:
        """Whether events are handed out."""
        return self._pump_thread.is_alive() and not self._closing

    def submit(self, generation: Generation) -> None:
        """Gives all requests of a generation to the core, or none. Takes a while: call it on a worker thread.

        Raises:
            RequestError: A request cannot be served.
        """
        for request in generation.requests:
            request.check(self._core)
        for index, request in enumerate(generation.requests):
            with self._lock:  # the pump must not see events of an id that is not known yet
                if generation.closed:
                    return
                request_id = request.submit(self._core, self._queue)
                generation.ids.append(request_id)
                self._live[request_id] = (generation, index)

    def close_generation(self, generation: Generation) -> None:
        """Cancels what has not ended. Its blocks are free after at most one step."""
        with self._lock:
            generation.closed = True
            unfinished = [request_id for request_id in generation.ids if self._live.pop(request_id, None)]
        for request_id in unfinished:
            self._core.cancel(request_id)
        if unfinished:
            for request in generation.requests:
                if not request.finished:
                    self._metrics.observe_end(request)
        generation.fail(ApiError(503, "the request was cancelled", code="cancelled"))

    def abort_all(self, error: Exception) -> None:
        """Ends everything with an error."""
        with self._lock:
            generations = {id(generation): generation for generation, _ in self._live.values()}
        for generation in generations.values():
            generation.fail(error)
            self.close_generation(generation)

    # -- The pump -------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while not self._closing:
            try:
                events = self._queue.pop(_POLL_MS)
            except LlmBoostError as error:  # the engine has dropped all its requests, and goes on
                _log.error("engine failed", extra={"fields": {"error": str(error)}})
                self._core.cancel_all(self._queue)
                self._call(self.abort_all, error)
                continue
            if events:
                self._take(events)

    def _take(self, events: Sequence[_core.TokenEvent]) -> None:
        now = time.perf_counter()
        news: dict[Generation, Pieces] = {}
        for event in events:
            with self._lock:
                live = self._live.get(event.request)
            if live is None:
                continue  # cancelled, or ended by a stop string before the core knew
            generation, index = live
            request = generation.requests[index]
            try:
                piece = request.take(event)
            except LlmBoostError as error:
                self._call(self._fail, generation, error)
                continue
            if piece is None:
                continue
            self._metrics.observe_piece(request, piece, now)
            if request.finished:
                self._end(generation, request, event.request)
            if generation.streams or generation.unfinished == 0:
                news.setdefault(generation, []).append((index, piece))
        if news:
            self._call(
                _deliver, [(generation, pieces, generation.unfinished == 0) for generation, pieces in news.items()]
            )

    def _end(self, generation: Generation, request: RunningRequest, request_id: int) -> None:
        with self._lock:
            if self._live.pop(request_id, None) is None:
                return  # cancelled just now, and counted
        generation.unfinished -= 1
        self._metrics.observe_end(request)

    def _fail(self, generation: Generation, error: Exception) -> None:
        generation.fail(error)
        self.close_generation(generation)

    def _call(self, function: object, *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]


def _deliver(news: Sequence[tuple[Generation, Pieces, bool]]) -> None:
    for generation, pieces, ended in news:
        generation.deliver(pieces, ended=ended)
