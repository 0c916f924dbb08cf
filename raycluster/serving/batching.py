"""Batching of waiting requests: whenever another batch may begin, it takes as many waiting requests as fit, in the order they came.

The ingress sends the requests that wait for the model in one call. The model computes the requests that wait for it in one forward pass.

Serve's own `@serve.batch` closes a batch before the model is free. With a short wait, requests that arrive while a batch is
computed become many small batches. With a long wait, a single request waits for others that never come. And with
`batch_size_fn`, small requests can overtake a large one for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A request; its length is its number of rows."""

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Sized)
R = TypeVar("R")


class Batcher(Generic[S, R]):
    """Runs `compute` on batches of requests. A batcher belongs to one event loop."""

    def __init__(
        self, compute: Callable[[Sequence[S]], Awaitable[Sequence[R]]], max_rows: int, parallel: int = 1
    ) -> None:
        """Create a batcher that waits for requests.

        `compute`: takes requests and returns their results in order; `max_rows`: most rows of a batch (a larger request is a
        batch by itself); `parallel`: batches that are computed at a time.
        """
        self._compute, self._max_rows, self._parallel = compute, max_rows, parallel
        self._waiting: deque[tuple[S, asyncio.Future[R]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, request: S) -> R:
        """Return the result of one request. A request that is cancelled before its batch begins is not computed."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if len(self._workers) < self._parallel:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await future

    async def _work(self) -> None:
        """Compute batches until no request waits."""
        while batch := self._next_batch():
            try:
                results = await self._compute([request for request, _ in batch])
            except Exception as error:  # noqa: BLE001 - the requests of this batch get the error; the next batch may succeed
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[S, asyncio.Future[R]]]:
        batch: list[tuple[S, asyncio.Future[R]]] = []
        rows = 0
        while self._waiting:
            request, future = self._waiting[0]
            if not future.done():
                if batch and rows + len(request) > self._max_rows:
                    break
                batch.append((request, future))
                rows += len(request)
            self._waiting.popleft()
        return batch
