"""End an execution of Ray Data before its time. Ray itself only forgets the tasks and actors of one that is abandoned, and they go on writing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from raycluster.work import KILL_S

KEY = "raycluster_executions"
"""In a :class:`ray.data.DataContext`: which list of :data:`_running` its executions are put into."""

_numbers = count()
_running: dict[int, list[Any]] = {}


class Ends(ExecutionCallback):
    """Replaces the end of an execution by :func:`_shut_down`, and notes it. Ray makes one for each execution, on the driver."""

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray."""
        executor.shutdown = partial(_shut_down, executor, executor.shutdown, [])
        _running[executor._data_context.get_config(KEY)].append(executor)


def noted(context: ray.data.DataContext) -> Callable[[], None]:
    """A function that ends all executions which begin under this context, and waits for their end."""
    number = next(_numbers)
    _running[number] = []
    context.set_config(KEY, number)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Ends]

    def end() -> None:
        for executor in _running.get(number, ()):
            executor.shutdown(force=True)

    return end


def forget(context: ray.data.DataContext) -> None:
    """The executions under this context have ended."""
    _running.pop(context.get_config(KEY), None)


def _shut_down(
    executor: Any,
    shutdown: Callable[..., None],
    ends: list[ray.ObjectRef],
    force: bool,
    exception: Exception | None = None,
) -> None:
    """What Ray does at the end of an execution; of one with tasks left, by force, and with a wait for them.

    `ends`: what to wait for, kept for another call, as this one may be interrupted.
    """
    left = [task.get_waitable() for operator in executor._topology or () for task in operator.get_active_tasks()]
    ends += [each.completed() if isinstance(each, ray.ObjectRefGenerator) else each for each in left]
    shutdown(force=force or bool(left), exception=exception)
    if ends and ray.is_initialized():
        each_once = list(set(ends))
        ray.wait(each_once, num_returns=len(each_once), timeout=KILL_S, fetch_local=False)
