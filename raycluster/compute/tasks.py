"""Map a function over items as Ray tasks, or call one in a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import ray

from raycluster.compute import work
from raycluster.compute.node_checks import Common, checked
from raycluster.compute.resources import Resources

Item = TypeVar("Item")

FILES_A_TASK = 16
"""Most part files that one task reads. Small ones are hardly worth a task of their own."""
TASKS_A_CORE = 4
"""Fewest tasks for each core if they compute, as long as there are so many files. Then no core waits long for the last task of another."""


def file_groups(files: Sequence[Item], cores: float = 0) -> list[Sequence[Item]]:
    """Return the files (or what stands for each of them) in groups, each of them the work of one task.

    `cores`: number of cores that compute, for tasks to which reading is a small part of their work.
    """
    size = max(1, min(FILES_A_TASK, int(len(files) / (TASKS_A_CORE * cores)))) if cores else FILES_A_TASK
    return [files[start : start + size] for start in range(0, len(files), size)]


def map_groups(function: Callable[..., Any], files: Sequence[Item], *values: Any, common: Common) -> Iterator[Any]:
    """Call `function(group, *values)` for each group of the files (:func:`file_groups`), and yield the results as they come.

    Each group is a Ray task, which gets one read-only copy of the `values` per node. A single group is done here, because starting a task
    would take longer. `common`: what the nodes must have.
    """
    groups = file_groups(files)
    if len(groups) > 1:
        yield from map_tasks(function, groups, *map(ray.put, values), common=common)
    else:
        yield from (function(group, *values) for group in groups)


def one_task(function: Callable[..., Any], resources: Resources, *shared: ray.ObjectRef) -> Any:
    """Return the result of `function(*shared)`, called in a task that computes alone on its node (:attr:`Resources.heavy_task`)."""
    task = ray.remote(**resources.heavy_task)(checked(function, resources.common))
    return work.get(task.remote(*shared))


def map_tasks(
    function: Callable[..., Any],
    items: Iterable[Any],
    *shared: ray.ObjectRef,
    common: Common,
    demand: Mapping[str, float] | None = None,
    in_flight: int | None = None,
    ordered: bool = False,
) -> Iterator[Any]:
    """Call `function(item, *shared)` in one Ray task per item, and yield the results as they come, or `ordered` as the items.

    `demand`: Ray resources of a task, one core by default. `shared` are references from :func:`ray.put`: one read-only copy per node.
    `common`: what the nodes must have; a task on a node that lacks it raises :class:`ConfigError`.

    At most `in_flight` tasks (default: twice the cores) exist at a time, so that memory does not grow with the items. If the iterator is
    closed or a task fails, the other tasks are ended.
    """
    task = ray.remote(**(demand or {"num_cpus": 1}))(checked(function, common))
    rest = iter(items)
    limit = in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    tasks, left = work.Tasks(), list[ray.ObjectRef]()
    with work.ending(tasks.end):
        while True:
            for item in islice(rest, limit - len(left)):
                left.append(task.remote(item, *shared))
                tasks.pending.add(left[-1])
            if not left:
                return
            done, _ = ray.wait(left[:1] if ordered else left, timeout=work.POLL_S)
            work.check()
            for reference in done:
                tasks.pending.remove(reference)
                left.remove(reference)
                yield ray.get(reference)
