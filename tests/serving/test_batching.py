"""Test how waiting requests are put together into batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from raycluster.serving.batching import Batcher


class Recorder:
    """A computation that doubles the numbers of each request, records the batches, and waits until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, requests: Sequence[list[int]]) -> list[list[int]]:
        self.batches.append([len(request) for request in requests])
        assert self.go.wait(5)
        if any(-1 in request for request in requests):
            raise ValueError("minus one")
        return [[2 * value for value in request] for request in requests]


def batcher_of(compute: Recorder, max_rows: int) -> Batcher[list[int], list[int]]:
    async def in_thread(requests: Sequence[list[int]]) -> list[list[int]]:
        return await asyncio.to_thread(compute, requests)

    return Batcher(in_thread, max_rows)


async def submitted(batcher: Batcher[list[int], list[int]], sizes: list[int]) -> list[asyncio.Task[list[int]]]:
    """Submit requests of these sizes. The first one is being computed when the others come."""
    tasks = []
    for index, size in enumerate(sizes):
        tasks.append(asyncio.create_task(batcher.submit([index] * size)))
        if index in (0, len(sizes) - 1):
            await asyncio.sleep(0.05)
    return tasks


def test_what_waits_goes_together_in_order_and_within_the_limit() -> None:
    async def scenario() -> None:
        compute = Recorder()
        tasks = await submitted(batcher_of(compute, 8), [1, 1, 3, 4, 1, 20, 2])
        assert compute.batches == [[1]]
        compute.go.set()
        results = await asyncio.gather(*tasks)
        assert [result[0] for result in results] == [2 * index for index in range(7)]
        # No request is overtaken. The request that is larger than a batch is a batch by itself.
        assert compute.batches == [[1], [1, 3, 4], [1], [20], [2]]

    asyncio.run(scenario())


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def scenario() -> None:
        compute = Recorder()
        compute.go.set()
        started = time.monotonic()
        assert await batcher_of(compute, 8).submit([7]) == [14]
        assert time.monotonic() - started < 0.2

    asyncio.run(scenario())


def test_one_that_has_gone_is_not_computed_and_an_error_hits_its_own_batch_only() -> None:
    async def scenario() -> None:
        compute = Recorder()
        batcher = batcher_of(compute, 2)
        tasks = await submitted(batcher, [1, 1, 1])
        tasks[1].cancel()
        failing = asyncio.create_task(batcher.submit([-1, -1]))
        last = asyncio.create_task(batcher.submit([5]))
        await asyncio.sleep(0.05)
        compute.go.set()
        assert await tasks[2] == [4]
        with pytest.raises(ValueError, match="minus one"):
            await failing
        assert await last == [10]
        assert compute.batches == [[1], [1], [2], [1]]

    asyncio.run(scenario())


def test_several_batches_at_a_time() -> None:
    async def scenario() -> None:
        running, most, batches = 0, 0, []

        async def compute(requests: Sequence[list[int]]) -> list[int]:
            nonlocal running, most
            running, batches[len(batches) :] = running + 1, [len(requests)]
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            return [request[0] for request in requests]

        batcher: Batcher[list[int], int] = Batcher(compute, 4, parallel=2)
        first = [asyncio.create_task(batcher.submit([0]))]
        await asyncio.sleep(0.005)
        rest = [asyncio.create_task(batcher.submit([index])) for index in range(1, 12)]
        assert await asyncio.gather(*first, *rest) == list(range(12))
        assert (most, sum(batches)) == (2, 12)
        assert batches[:2] == [1, 4]

    asyncio.run(scenario())
