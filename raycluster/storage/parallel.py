"""Call a function for many files in several threads. On object storage each call waits for several answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 16
"""Number of calls at a time."""


def map_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order.

    At most twice as many items as threads are taken from the iterator before their results are used, so memory does not grow with them.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Result]] = deque()
        try:
            while True:
                running.extend(pool.submit(function, item) for item in islice(rest, 2 * threads - len(running)))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
