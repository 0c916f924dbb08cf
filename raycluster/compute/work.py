"""The work that a run has going on in Ray, and how it ends. Before the run releases its lock, nothing may be left that still writes.

Ray lets tasks go on when nobody waits for them any more. So code that starts tasks registers here how to end them (:func:`ending`). A run
that fails, is interrupted or has lost its lock ends all of them (:func:`of_run`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray

from raycluster.compute import interrupts

log = logging.getLogger(__name__)

KILL_S = 60.0
"""Longest wait for the end of killed processes, in seconds."""
AGAIN_S = 5.0
"""Seconds after which a task that was cancelled, but has not ended, is cancelled again."""
POLL_S = 1.0
"""Seconds between two checks whether the run may go on."""


class Work:
    """All work that one run has going on."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def end(self) -> None:
        """End all of it, the latest first, and wait until it has ended. Any thread may call this."""
        for end in reversed(list(self._ends)):
            end()

    def add(self, end: Callable[[], None]) -> None:
        """Register `end()`, which ends some work and does nothing if that has ended already."""
        self._ends.append(end)

    def remove(self, end: Callable[[], None]) -> None:
        """Remove `end()`, because its work has ended."""
        self._ends.remove(end)


_current: ContextVar[Work | None] = ContextVar("work", default=None)
_may_go_on: ContextVar[Callable[[], None]] = ContextVar("may_go_on", default=lambda: None)


@contextmanager
def of_run(work: Work, may_go_on: Callable[[], None]) -> Iterator[None]:
    """Context of a run: at its end, all work that was started in it is ended. `may_go_on()` raises an error if the run must stop."""
    tokens = _current.set(work), _may_go_on.set(may_go_on)
    try:
        yield
    finally:
        work.end()
        _current.reset(tokens[0])
        _may_go_on.reset(tokens[1])


def check() -> None:
    """Raise an error if the run around this call must stop, because it has lost its lock or was interrupted."""
    interrupts.check()
    _may_go_on.get()()


@contextmanager
def ending(end: Callable[[], None]) -> Iterator[None]:
    """Context that calls `end()` at its end, or at the end of the run if that comes first. `end()` may be called more than once."""
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
    """Tasks that somebody waits for and that can be ended. If they are `of_actors`, the actors must have been killed before."""

    def __init__(self, *references: ray.ObjectRef, of_actors: bool = False) -> None:
        self.pending = set(references)
        self._of_actors = of_actors
        self._told: set[ray.ObjectRef] = set()

    def end(self, longest: float = KILL_S) -> None:
        """Kill the processes of running tasks, drop the other tasks, and wait until all have ended, about `longest` seconds at most.

        Ray 2.60 aborts the driver if a task is cancelled in the moment in which it completes ("Tried to complete task that was not pending").
        So a task with a result is not cancelled, and the others are killed at once: a gentle cancellation first would need a second one.
        The run removes files that a killed task has half-written. Ray also loses a cancellation that reaches a task just as it starts, so
        a task that still runs after :data:`AGAIN_S` is cancelled again.
        """
        if not self.pending or not ray.is_initialized():
            return
        tell = self._left(timeout=0) - self._told
        for _ in range(max(1, int(longest / AGAIN_S))):
            for reference in tell:
                ray.cancel(reference, force=not self._of_actors)
            if tell & self._told:
                # Ray counts the tasks that are cancelled again as ended from now on, but their processes are killed a moment later.
                time.sleep(1)
            self._told |= tell
            tell = self._left(timeout=AGAIN_S)
            if not tell:
                return
        log.warning(
            "ray: %d tasks did not end in %.0f s; look for a node that hangs (`ray status`)", len(tell), longest
        )

    def _left(self, timeout: float) -> set[ray.ObjectRef]:
        """Wait up to `timeout` seconds for the pending tasks, and return those that still run then."""
        references = list(self.pending)
        return set(ray.wait(references, num_returns=len(references), timeout=timeout, fetch_local=False)[1])


def kill(actors: Iterable[Any]) -> None:
    """End actors that hold nothing worth keeping."""
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)


def get(reference: ray.ObjectRef) -> Any:
    """Return the result of a task, like :func:`ray.get`. The run is checked during the wait; if it must stop, the task is ended."""
    tasks = Tasks(reference)
    with ending(tasks.end):
        while not ray.wait([reference], timeout=POLL_S)[0]:
            check()
        tasks.pending.clear()
        return ray.get(reference)
