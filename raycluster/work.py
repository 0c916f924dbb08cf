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
    """Tasks that are waited for, and can be ended; if they are `of_actors`, these must have been killed before."""

    def __init__(self, *references: ray.ObjectRef, of_actors: bool = False) -> None:
        self.pending = set(references)
        self._of_actors = of_actors
        self._told: set[ray.ObjectRef] = set()

    def end(self, longest: float = KILL_S) -> None:
        """Kill the processes of those that run, drop the others, and wait until all have ended, about `longest` seconds at most.

        Ray 2.60 aborts the driver if a task is cancelled in the moment in which it completes ("Tried to complete task that was not pending").
        So a task whose result is there is not cancelled, and the others are killed at once: a gentle cancellation before would need a second
        one. The run removes what a killed task has half-written. Ray also loses a cancellation that meets a task just as it starts, so a
        task that still runs after :data:`AGAIN_S` is cancelled again.
        """
        if not self.pending or not ray.is_initialized():
            return
        tell = self._left(timeout=0) - self._told
        for _ in range(max(1, int(longest / AGAIN_S))):
            for reference in tell:
                ray.cancel(reference, force=not self._of_actors)
            if tell & self._told:
                # Those count as ended from now on; their processes are killed a moment later.
                time.sleep(1)
            self._told |= tell
            tell = self._left(timeout=AGAIN_S)
            if not tell:
                return
        log.warning(
            "ray: %d tasks did not end in %.0f s; look for a node that hangs (`ray status`)", len(tell), longest
        )

    def _left(self, timeout: float) -> set[ray.ObjectRef]:
        """Wait up to `timeout` seconds for the pending tasks; returns those that still run then."""
        references = list(self.pending)
        return set(ray.wait(references, num_returns=len(references), timeout=timeout, fetch_local=False)[1])


def kill(actors: Iterable[Any]) -> None:
    """End actors that hold nothing worth keeping."""
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)


def get(reference: ray.ObjectRef) -> Any:
    """What a task gives, like :func:`ray.get`; the run is checked while it is waited for, and if it stops so does the task."""
    tasks = Tasks(reference)
    with ending(tasks.end):
        while not ray.wait([reference], timeout=POLL_S)[0]:
            check()
        tasks.pending.clear()
        return ray.get(reference)
