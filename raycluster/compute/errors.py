"""Turn errors that came through Ray into errors of raycluster."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray

from raycluster.compute.node_checks import check_versions
from raycluster.errors import RayclusterError
from raycluster.storage.s3_errors import is_s3_error

Result = TypeVar("Result")

EXPLAIN_S = 60.0
"""Seconds within which nodes must answer when an error is to be explained."""


def raised_in_task(error: BaseException) -> RayclusterError | None:
    """Return what to tell the user of an error that came through Ray; None if it is none of the kinds below.

    If a task, a Ray Data stage or a Train worker raised an error of raycluster, that error is returned. Otherwise the returned error says
    that Ray lost a process or a node, or that the storage failed.
    """
    causes = list(_causes(error))
    # Ray wraps an error in one that is an instance of the same class too. Only the original has the plain message.
    for one in causes:
        if isinstance(one, RayclusterError) and not isinstance(one, ray.exceptions.RayTaskError):
            return one
    for one in causes:
        # If an actor could not be created, the reason is in a traceback, so no short message replaces it.
        if isinstance(one, _LOST) and not getattr(one, "actor_init_failed", False):
            reason = " ".join(str(one).split())
            return RayclusterError(
                f"Ray lost a process or a node ({type(one).__name__}: {reason:.200}); run the command again: finished work is kept"
            )
        if is_s3_error(one):
            # Ray Data appends advice on its own settings to every error that passes through it.
            reason = str(one).partition("\nFailed to apply UDF")[0]
            return RayclusterError(
                f"the storage failed: {reason}; run the command again when it answers and accepts the credentials: finished work is kept"
            )
    return None


def _other_code(error: BaseException) -> RayclusterError | None:
    """Return an error that says which node has other versions, if that may be the reason; else None.

    A node with other versions that joined late may be unable even to load the work that was sent to it.
    """
    if ray.is_initialized() and any(isinstance(one, _OTHER_CODE) for one in _causes(error)):
        try:
            check_versions(EXPLAIN_S)
        except RayclusterError as different:
            return different
    return None


def with_plain_errors(action: Callable[[], Result]) -> Result:
    """Return the result of `action()`. Errors that came through Ray are raised as errors of raycluster that refer to nothing of Ray.

    :func:`raised_in_task` translates them; another error may mean that a node has other code. Code that keeps an error, as a notebook
    keeps its last one, also keeps the frames that it came through. These hold the handles of actors, and the actors hold their cores. The
    next run in that process would wait for these cores for ever.
    """
    try:
        return action()
    except Exception as error:
        ours = raised_in_task(error) or _other_code(error)
        if ours is None or ours is error:
            raise
        ours.__traceback__ = ours.__cause__ = ours.__context__ = None
    gc.collect()
    raise ours


_OTHER_CODE = (ImportError, AttributeError, TypeError)
"""Errors of a process that cannot load what another version of the package sent."""
_LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorDiedError,
    ray.exceptions.ActorUnavailableError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all that led to it, in whatever way Ray keeps them."""
    todo: list[Any] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [
            getattr(one, "cause", None),
            one.__cause__,
            one.__context__,
            *getattr(one, "worker_failures", {}).values(),
        ]
