"""Ray at its plainest: join or start it, map a function over items as tasks, read its errors."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import ray

from raycluster import interrupts, work
from raycluster.errors import ConfigError, RayclusterError
from raycluster.node_checks import SAME_VERSIONS, Common, check_versions, checked
from raycluster.resources import Resources
from raycluster.storage import Location

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FILES_A_TASK = 16
"""Part files read by one task: enough work to be worth starting it."""
CONNECT_S = 10.0
"""Seconds within which a cluster must take a connection."""
EXPLAIN_S = 60.0
"""Seconds within which nodes must answer when an error is to be explained."""


def connect() -> None:
    """:func:`join`, and see that the nodes of a joined cluster have this process's versions; raises :class:`ConfigError`."""
    if not ray.is_initialized() and join():
        check_versions()


def join() -> bool:
    """Join the Ray cluster that `RAY_ADDRESS` names, or start Ray on this machine; True if a cluster was joined.

    A Ray already joined is kept. Raises :class:`RayclusterError` if no Ray answers there or it cannot be joined.
    """
    if ray.is_initialized():
        return False
    # Ray switches its tokens on by default and says so at every start.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray's own usage banner and worker logs would drown the one line a stage prints; errors travel as exceptions.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    options = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        with interrupts.kept():
            ray.init(address="local", include_dashboard=False, **options)
        log.info("ray: started on this machine")
        return False
    _check_answers(address)
    try:
        with interrupts.kept():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _not_joined(address, error) from error
    log.info("ray: joined %s", address)
    return True


def _check_answers(address: str) -> None:
    """Knock at the door: where nobody listens Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise RayclusterError(
            f"RAY_ADDRESS: nothing answers at {address} ({error}); give the address of a running cluster's head (`ray status`), "
            "or unset RAY_ADDRESS to start Ray on this machine"
        ) from None


def _not_joined(address: str, error: Exception) -> RayclusterError:
    reasons = " ".join(str(each) for each in (error, error.__cause__) if each is not None)
    if "Version mismatch" in reasons:
        return ConfigError(f"ray: {' '.join(str(error).split())}; {SAME_VERSIONS}")
    if "AuthToken" in reasons:
        return ConfigError(
            f"RAY_ADDRESS: the cluster at {address} wants its token; put it into ~/.ray/auth_token or RAY_AUTH_TOKEN, "
            "and set RAY_AUTH_MODE=token"
        )
    return RayclusterError(
        f"RAY_ADDRESS: {address} could not be joined ({' '.join(str(error).split())[:300]}); see `ray status`"
    )


@contextmanager
def streaming(object_store_bytes: int, cpus: float | None = None, ordered: bool = False) -> Iterator[None]:
    """Within this context Ray Data keeps so much in flight, on so many cores (default: all), in the rows' order if asked to."""
    import ray.data  # a second

    from raycluster import executions

    # One line a stage is ours to print; Ray Data, whose loggers are set up when it is imported, would add its plan and more.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    # Nor pages on an error that also comes as an exception, with a request to open an issue with Ray.
    for name in ("_internal.execution.streaming_executor_state", "exceptions"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    # Nor the warning, at every stage with GPUs, that an operator which reserves CPUs beside a GPU is experimental. Without a number of ours
    # Ray Data reserves a core for each GPU, and on nodes with few cores nothing would be left for decoding.
    logging.getLogger("ray.data._internal.execution.operators.map_operator").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Otherwise an error of ours, such as storage that is down, would arrive as text only.
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = ordered
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=object_store_bytes
    )
    end = executions.noted(context)
    try:
        with work.ending(end), ray.data.DataContext.current(context):
            yield
            # An execution that was ended from outside looks as if it were complete.
            work.check()
    finally:
        executions.forget(context)


def raised_in_task(error: BaseException) -> RayclusterError | None:
    """What to tell the user of an error that came through Ray: ours, if a task, a Ray Data stage or a Train worker raised one; that
    Ray lost a process, or that the storage failed; None if it is none of these.
    """
    causes = list(_causes(error))
    # What Ray makes of an error is an instance of its class too; only the original has the plain message.
    for one in causes:
        if isinstance(one, RayclusterError) and not isinstance(one, ray.exceptions.RayTaskError):
            return one
    for one in causes:
        # An actor that could not be made has its reason in a traceback.
        if isinstance(one, _LOST) and not getattr(one, "actor_init_failed", False):
            reason = " ".join(str(one).split())
            return RayclusterError(
                f"Ray lost a process or a node ({type(one).__name__}: {reason:.200}); run the command again: what is finished is kept"
            )
        if isinstance(one, OSError) and "AWS Error" in str(one):
            # Ray Data appends advice on its own settings to whatever passes through it.
            reason = str(one).partition("\nFailed to apply UDF")[0]
            return RayclusterError(
                f"the storage failed: {reason}; when it answers, and takes the credentials, run the command again: what is finished is kept"
            )
    return None


def _other_code(error: BaseException) -> RayclusterError | None:
    """That a node has other versions, if it may be why: one that joined late, and could not even read what it was to do."""
    if ray.is_initialized() and any(isinstance(one, _OTHER_CODE) for one in _causes(error)):
        try:
            check_versions(EXPLAIN_S)
        except RayclusterError as different:
            return different
    return None


def plainly(action: Callable[[], Result]) -> Result:
    """What `action()` gives; an error that came through Ray as :func:`raised_in_task` tells it, or that a node has other code. Nothing of Ray hangs on that.

    Else who keeps the error, as a notebook keeps its last one, would keep the frames it came through, with them the handles of
    actors, with these their cores, and the next run in that process would wait for them for ever.
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
    """The error and all that led to it, whatever way Ray keeps them."""
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


def file_groups(files: list[Location]) -> list[list[Location]]:
    """The files in lists, each the work of one task."""
    return [files[start : start + FILES_A_TASK] for start in range(0, len(files), FILES_A_TASK)]


def one_task(function: Callable[..., Any], resources: Resources, *shared: ray.ObjectRef) -> Any:
    """What `function(*shared)` gives, called in a task that computes alone on its node (:attr:`Resources.heavy_task`)."""
    task = ray.remote(**resources.heavy_task)(checked(function, resources.common))
    return work.get(task.remote(*shared))


def map_tasks(
    function: Callable[..., Any],
    items: Iterable[Any],
    *shared: ray.ObjectRef,
    common: Common,
    demand: Mapping[str, float] | None = None,
    in_flight: int | None = None,
) -> Iterator[Any]:
    """Call `function(item, *shared)` as one Ray task an item and yield the results as they come.

    `demand`: Ray resources of a task, one core by default. `shared` are references from :func:`ray.put`: one copy a node, read-only.
    `common`: what their nodes must have; :class:`ConfigError` from one that has not. At most `in_flight` tasks (default: twice the cores)
    exist at a time, so that memory does not grow with the items. When the iterator is closed, or one of them fails, the others are ended.
    """
    task = ray.remote(**(demand or {"num_cpus": 1}))(checked(function, common))
    rest = iter(items)
    limit = in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    tasks = work.Tasks()
    with work.ending(tasks.end):
        while True:
            for item in islice(rest, limit - len(tasks.pending)):
                tasks.pending.add(task.remote(item, *shared))
            if not tasks.pending:
                return
            done, _ = ray.wait(list(tasks.pending), timeout=work.POLL_S)
            work.check()
            for reference in done:
                tasks.pending.remove(reference)
                yield ray.get(reference)
