"""What a run has going on in Ray, and how it ends: before the run's lock is released nothing may be left that still writes.

Ray lets tasks go on when nobody waits for them any more. So whatever starts some says here how to end it (:func:`ending`), and a run that
fails, is interrupted or has lost its lock ends all of it (:func:`of_run`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray

from raycluster import interrupts

log = logging.getLogger(__name__)

KILL_S = 60.0
"""Longest wait for the end of killed processes, in seconds."""
AGAIN_S = 5.0
"""Seconds after which a task that was told to end, and has not, is told again."""
POLL_S = 1.0
"""Seconds between two looks whether the run may go on."""


class Work:
    """All that one run has going on."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def end(self) -> None:
        """End all of it, the latest first, and wait until it has ended; from any thread."""
        for end in reversed(list(self._ends)):
            end()

    def add(self, end: Callable[[], None]) -> None:
        """`end()` ends something, and does nothing when that has ended already."""
        self._ends.append(end)

    def remove(self, end: Callable[[], None]) -> None:
        """It has ended."""
        self._ends.remove(end)


_current: ContextVar[Work | None] = ContextVar("work", default=None)
_may_go_on: ContextVar[Callable[[], None]] = ContextVar("may_go_on", default=lambda: None)


@contextmanager
def of_run(work: Work, may_go_on: Callable[[], None]) -> Iterator[None]:
    """Context of a run: at its end nothing that was started in it goes on. `may_go_on()` raises an error if the run must stop."""
    tokens = _current.set(work), _may_go_on.set(may_go_on)
    try:
        yield
    finally:
        work.end()
        _current.reset(tokens[0])
        _may_go_on.reset(tokens[1])


def check() -> None:
    """Raise an error if the run in whose context this is called must stop: it has lost its lock, or was interrupted."""
    interrupts.check()
    _may_go_on.get()()


@contextmanager
def ending(end: Callable[[], None]) -> Iterator[None]:
    """Context at whose end, or at that of the run if it comes first, `end()` is called; it may be called more than once."""
    work = _current.get()
    if work is not None:
        work.add(end)
    try:
        yield
    finally:
        end()
        if work is not None:
            work.remove(end)


class Tasks:
    """Tasks that are waited for, and can be ended."""

    def __init__(self, *references: ray.ObjectRef) -> None:
        self.pending = set(references)
        self._told: set[ray.ObjectRef] = set()

    def end(self, longest: float = KILL_S) -> None:
        """Kill the processes of those that run, drop the others, and wait until all have ended, about `longest` seconds at most.

        Not one of them is told again soon: Ray 2.60 aborts the driver if a task ends while it is cancelled for the second time. So there is
        no gentle way first; what a killed task has half-written the run removes. But Ray loses a cancellation that meets a task just as it
        starts, so whoever still runs after a while is told again.
        """
        if not self.pending or not ray.is_initialized():
            return
        tell = self.pending - self._told
        for _ in range(max(1, int(longest / AGAIN_S))):
            for reference in tell:
                ray.cancel(reference, force=True)
            if tell & self._told:
                # Those count as ended from now on; their processes are killed a moment later.
                time.sleep(1)
            self._told |= tell
            references = list(self.pending)
            _, left = ray.wait(references, num_returns=len(references), timeout=AGAIN_S, fetch_local=False)
            if not left:
                return
            tell = set(left)
        log.warning(
            "ray: %d tasks did not end in %.0f s; look for a node that hangs (`ray status`)", len(left), longest
        )


def kill(actors: Iterable[Any]) -> None:
    """End actors that hold nothing worth keeping."""
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)


def get(reference: ray.ObjectRef) -> Any:
    """What a task gives, like :func:`ray.get`; the run is checked while it is waited for, and if it stops so does the task."""
    with ending(Tasks(reference).end):
        while not ray.wait([reference], timeout=POLL_S)[0]:
            check()
        return ray.get(reference)
