"""Ray at its plainest: join or start it, know its resources, map a function over items as tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray

from raycluster.config import ResourcesConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.storage import Location

log = logging.getLogger(__name__)

FILES_A_TASK = 16
"""Part files read by one task: enough work to be worth starting it."""


@dataclass(frozen=True)
class Resources:
    """What a run uses of the cluster."""

    cpus: float
    node_cpus: int
    """CPUs of the smallest node."""
    gpus: float
    encoder_actors: int
    train_workers: int

    @property
    def use_gpu(self) -> bool:
        """Whether models run on GPUs."""
        return self.gpus > 0

    def threads(self, processes: int) -> int:
        """Threads of each of so many processes that compute on the CPUs."""
        return max(1, min(self.node_cpus, int(self.cpus // processes)))

    def reserved_cpus(self, processes: int) -> float:
        """CPUs that each of them reserves: its share of a node of which one core is left for decoding.

        Without that core the decode tasks would wait for the processes, and the processes for them.
        """
        if self.node_cpus == 1:
            return 0.5
        share = self.threads(processes) * (self.node_cpus - 1) / self.node_cpus
        return share if share < 1 else float(int(share))  # Ray takes fractions below one only

    @property
    def device(self) -> str:
        """Torch device of everything that computes: `cuda` or `cpu`."""
        return "cuda" if self.use_gpu else "cpu"

    @property
    def encoder_actor(self) -> dict[str, float]:
        """Ray resources of an encoder actor."""
        return (
            {"num_gpus": self.gpus / self.encoder_actors}
            if self.use_gpu
            else {"num_cpus": self.reserved_cpus(self.encoder_actors)}
        )

    @property
    def task_cpus(self) -> float:
        """CPUs that a decode task reserves: what the actors leave, less :attr:`writer_cpus`.

        With a whole core for each decode task, Ray Data would not write a block before the last picture is decoded, and a
        kill would lose everything.
        """
        return (1.0 if self.node_cpus > 1 else 0.5) - self.writer_cpus

    @property
    def writer_cpus(self) -> float:
        """CPUs that a write task reserves."""
        return 0.25

    @property
    def heavy_task(self) -> dict[str, float]:
        """Ray resources for a task that runs alone: one GPU, or the cores of the smallest node but one.

        A task that reserved every core would wait for ever beside anything else.
        """
        return {"num_cpus": 1, "num_gpus": 1} if self.use_gpu else {"num_cpus": max(1, self.node_cpus - 1)}


def connect() -> None:
    """Join the Ray cluster that `RAY_ADDRESS` names, or start Ray on this machine; a Ray already joined is kept."""
    if ray.is_initialized():
        return
    # Ray switches its tokens on by default and says so at every start.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray's own usage banner and worker logs would drown the one line a stage prints; errors travel as exceptions.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address or "local",
        log_to_driver=False,
        logging_level=logging.WARNING,
        include_dashboard=None if address else False,
    )
    log.info("ray: %s", f"joined {address}" if address else "started on this machine")


@contextmanager
def streaming(object_store_bytes: int, cpus: float | None = None, ordered: bool = False) -> Iterator[None]:
    """Within this context Ray Data keeps so much in flight, on so many cores (default: all), in the rows' order if asked to."""
    import ray.data  # a second

    # One line a stage is ours to print; Ray Data, whose loggers are set up when it is imported, would add its plan and more.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Otherwise an error of ours, such as storage that is down, would arrive as text only.
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = ordered
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=object_store_bytes
    )
    with ray.data.DataContext.current(context):
        yield


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
            return RayclusterError(
                f"the storage failed: {one}; when it answers, and takes the credentials, run the command again: what is finished is kept"
            )
    return None


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


def _smallest_node_cpus() -> int:
    """CPUs of the smallest node that has any."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min((n for n in cpus if n > 0), default=1))


def resolve(config: ResourcesConfig) -> Resources:
    """Fill the gaps of `resources:` from the cluster; raises :class:`ConfigError` for what it cannot give."""
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    if config.use_gpu and not gpus:
        raise ConfigError(
            "resources.use_gpu is true, but this Ray cluster has no GPU: remove it, or join a cluster with GPUs"
        )
    if config.use_gpu is False:
        gpus = 0.0
    limit = int(gpus) if gpus else int(cpus)
    for field, wanted in (("encoder_actors", config.encoder_actors), ("train_workers", config.train_workers)):
        if wanted and wanted > limit:
            kind = "GPUs" if gpus else "CPUs"
            raise ConfigError(f"resources.{field} is {wanted}, but this Ray cluster has {limit} {kind}: lower it")
    return Resources(
        cpus,
        _smallest_node_cpus(),
        gpus,
        config.encoder_actors or max(1, limit),
        config.train_workers or max(1, int(gpus)),
    )


def file_groups(files: list[Location]) -> list[list[Location]]:
    """The files in lists, each the work of one task."""
    return [files[start : start + FILES_A_TASK] for start in range(0, len(files), FILES_A_TASK)]


def map_tasks(
    function: Callable[..., Any],
    items: Iterable[Any],
    *shared: ray.ObjectRef,
    demand: Mapping[str, float] | None = None,
    in_flight: int | None = None,
) -> Iterator[Any]:
    """Call `function(item, *shared)` as one Ray task an item and yield the results as they come.

    `demand`: Ray resources of a task, one core by default. `shared` are references from :func:`ray.put`: one copy a node, read-only.
    At most `in_flight` tasks (default: twice the cores) exist at a time, so that memory does not grow with the items.
    """
    task = ray.remote(**(demand or {"num_cpus": 1}))(function)
    rest = iter(items)
    limit = in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending = [task.remote(item, *shared) for item in islice(rest, limit)]
    while pending:
        done, pending = ray.wait(pending)
        pending += [task.remote(item, *shared) for item in islice(rest, len(done))]
        for reference in done:
            yield ray.get(reference)
