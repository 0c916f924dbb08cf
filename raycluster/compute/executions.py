"""End an execution of Ray Data early. Ray itself only forgets the tasks and actors of an abandoned execution, and they go on writing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

from raycluster.compute.work import KILL_S, Tasks

KEY = "raycluster_executions"
"""Key of a :class:`ray.data.DataContext`. Its value names the list of :data:`_running` that the executions are put into."""

_numbers = count()
_running: dict[int, list[Callable[[], None]]] = {}


class Ends(ExecutionCallback):
    """Callback that makes an execution end by force and wait for what it ends. Ray creates one for each execution, on the driver."""

    def before_execution_starts(self, executor: Any) -> None:
        """Replace the functions that end the execution. Ray calls this before it starts the executor's thread, which starts the tasks."""
        ended: list[Tasks] = []
        executor.shutdown = partial(_shut_down, executor.shutdown)
        # Ray waits only two seconds for this thread to stop. A task that the thread starts after that would be missed.
        executor.join = lambda timeout=None: threading.Thread.join(executor, KILL_S)
        for operator in executor._topology:
            operator._cancel_active_tasks = partial(_end_tasks, operator, ended)
        _running[executor._data_context.get_config(KEY)].append(partial(_end, executor, ended))


def noted(context: ray.data.DataContext) -> Callable[[], None]:
    """Return a function that ends all executions which begin under this context, and waits for their end."""
    number = next(_numbers)
    _running[number] = []
    context.set_config(KEY, number)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Ends]

    def end() -> None:
        for end_one in _running.get(number, ()):
            end_one()

    return end


def forget(context: ray.data.DataContext) -> None:
    """Forget the executions under this context, because they have ended."""
    _running.pop(context.get_config(KEY), None)


def _end(executor: Any, ended: list[Tasks]) -> None:
    """End an execution. If it is called again, by another thread or after an interrupt, it waits for what is being ended."""
    executor.shutdown(force=True)
    for tasks in ended:
        tasks.end()


def _shut_down(shutdown: Callable[..., None], force: bool, exception: Exception | None = None) -> None:
    """Shut an execution down by force, whatever Ray asks for. Tasks and actors of an incomplete one would otherwise go on."""
    shutdown(force=True, exception=exception)


def _end_tasks(operator: Any, ended: list[Tasks], force: bool) -> None:
    """End the tasks of an operator. Ray's own function, which this replaces, does not wait for tasks that stream their results.

    Ray calls it when no more tasks are started, and when the operator's actors have been killed.
    """
    waitables = [task.get_waitable() for task in operator.get_active_tasks()]
    references = (each.completed() if isinstance(each, ray.ObjectRefGenerator) else each for each in waitables)
    tasks = Tasks(*references, of_actors=isinstance(operator, ActorPoolMapOperator))
    ended.append(tasks)
    tasks.end()
