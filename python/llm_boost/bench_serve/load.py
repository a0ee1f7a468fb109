"""Sends requests at their times, no more of them at once than allowed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from llm_boost.bench_serve.metrics import RequestRecord
from llm_boost.bench_serve.workload import LoadRequest


async def run_load(
    send: Callable[[LoadRequest], Awaitable[RequestRecord]],
    requests: Sequence[LoadRequest],
    arrivals: Sequence[float],
    max_concurrency: int | None,
    done: Callable[[RequestRecord], object],
) -> tuple[list[RequestRecord], float]:
    """Sends all requests; returns their records in order, and the seconds that all took.

    Args:
        send: Sends one.
        requests: What is sent.
        arrivals: Seconds from now at which each may be sent, rising.
        max_concurrency: Most requests at once; one that is due waits, and its clock starts when it is sent.
        done: Told of each record as it comes.
    """
    clock = asyncio.get_running_loop().time
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()

    async def run(request: LoadRequest) -> RequestRecord:
        async with gate:
            record = await send(request)
        done(record)
        return record

    started = clock()
    tasks = []
    for request, due in zip(requests, arrivals, strict=True):
        if (delay := started + due - clock()) > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(run(request)))
    records = await asyncio.gather(*tasks)
    return records, clock() - started
