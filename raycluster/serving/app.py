"""The endpoint on Ray Serve: an ingress that reads requests, decodes pictures and answers, and a deployment that holds the model.

`build` is the application builder for `serve deploy`, RayService and `raycluster serve`.
"""

# This module cannot use `from __future__ import annotations`: Serve reads the builder's annotation, and for a string passes a plain dict.

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raycluster.errors import RayclusterError
from raycluster.section import Section, validate
from raycluster.serving.access import TOKENS_VARIABLE, allowed_locations, only_loopback, read_tokens
from raycluster.serving.api import create_app
from raycluster.serving.batching import Batcher
from raycluster.serving.live_model import Answer, Job, LiveModel, Loaded, ModelInfo, Stale
from raycluster.serving.metrics import ModelMetrics, RequestMetrics, gather
from raycluster.serving.requests import RETRY_AFTER_S, overloaded
from raycluster.serving.service import Service
from raycluster.serving.settings import ModelReplicas, Replicas, ServeSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 4
"""Times that a call is sent to the model, if the replica that computes it dies."""
MODEL_ONGOING = 256
"""Calls that a model replica holds at once. Those that wait there form the next batch."""
MODEL_QUEUED = 2048
INGRESS_ONGOING = 8192
"""Requests that an ingress replica holds at once. A slow one is cheap; the gate of the replica counts what costs memory or time."""


class ModelChoice(Section):
    """The `user_config` of the deployment `Model`. If it changes, the model is swapped without a restart."""

    run: str
    """The same as `run` in :class:`ServeSettings`."""


class ModelReplica:
    """Deployment that holds the model and batches the requests that wait for it."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        self._live: LiveModel | None = None
        self._metrics = ModelMetrics()
        self._batcher: Batcher[Job, Answer | Stale] = Batcher(self._in_thread, settings.model.max_batch)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._watcher: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the model of a new replica, or offer a running replica another model.

        If the other model is refused, the replica keeps its model and nothing is raised.
        """
        async with self._changing:
            if self._live is None:
                self._live = await asyncio.to_thread(self._start, validate(user_config, ModelChoice, "user_config").run)
            else:
                await asyncio.to_thread(self._offer, user_config)
            # The watcher starts again, because another model has other pauses. It does not hold the lock now, so nothing is interrupted.
            if self._watcher is not None:
                self._watcher.cancel()
            self._watcher = asyncio.create_task(self._watch(self._live))
        self._metrics.use(self._live.info.version)

    def _start(self, run: str) -> LiveModel:
        settings = self._settings

        def load(place: str) -> LiveModel:
            return LiveModel(place, settings.storage, self._device, settings.model.max_batch)

        try:
            return load(run)
        except RayclusterError:
            if run == settings.run:
                raise
            # This replica starts after a swap was refused, for instance because another replica died. Like the others, it loads the
            # model of the settings and is then offered the new one.
            live = load(settings.run)
            self._metrics.refuse()
            live.offer(run)
            return live

    def _offer(self, user_config: dict[str, Any]) -> None:
        assert self._live is not None
        run = user_config.get("run") if isinstance(user_config, dict) else None
        if not self._live.offer(str(run)):
            self._metrics.refuse()

    async def _watch(self, live: LiveModel) -> None:
        """Take over new models of the run folder, if `watch_seconds` is set, and retry a model that could not be loaded for the moment."""
        while (pause := live.next_look(self._settings.watch_seconds)) is not None:
            await asyncio.sleep(pause)
            async with self._changing:
                refused = live.info.refused
                if await asyncio.to_thread(live.look):
                    self._metrics.use(live.info.version)
                elif live.info.refused != refused:
                    self._metrics.refuse()

    async def _in_thread(self, jobs: Sequence[Job]) -> Sequence[Answer | Stale]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, jobs)

    def _compute(self, jobs: Sequence[Job]) -> Sequence[Answer | Stale]:
        started = time.monotonic()
        assert self._live is not None
        answers = self._live.answer(jobs)
        self._metrics.batch(sum(map(len, jobs)), time.monotonic() - started)
        return answers

    async def assign(self, rows: np.ndarray, pixels: str | None, top_k: int) -> Answer | Stale:
        """Assign pictures (uint8 [n, height, width, 3], preprocessed as `pixels`) or embeddings [n, d] (`pixels` None) of a request."""
        return await self._batcher.submit(Job(rows, pixels, top_k))

    async def model_info(self) -> ModelInfo:
        """Return the info of the model in use."""
        assert self._live is not None
        return self._live.info

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        """Return the model's version, the clusters from `start` to `stop` as plain data, and the number of all clusters."""
        assert self._live is not None
        rows = self._live.gallery.clusters
        return self._live.info.version, rows[start:stop], len(rows)

    async def check_health(self) -> None:
        """Raise if no model is loaded; Serve then replaces this replica."""
        if self._live is None:
            raise RuntimeError("no model is loaded: the deployment `Model` needs user_config {run: …}")


class HandleClient:
    """Client of the model behind a deployment handle.

    A call costs milliseconds, so requests that wait are sent together. If a replica dies during a call, the call is sent again.
    """

    def __init__(self, handle: DeploymentHandle, model: ModelReplicas) -> None:
        self._handle = handle
        # Two calls for each replica: one is computed while the next is on its way.
        calls = 2 * max(model.min_replicas, model.max_replicas)
        self._batcher: Batcher[Job, Answer | Stale] = Batcher(self._send, model.max_batch, calls)

    async def model_info(self) -> ModelInfo:
        """Return the info of the model in use."""
        return await self._ask(self._handle.model_info.remote)

    async def assign(self, rows: np.ndarray, pixels: str | None, top_k: int) -> Answer | Stale:
        """Assign the pictures or embeddings of a request."""
        return await self._batcher.submit(Job(rows, pixels, top_k))

    async def _send(self, jobs: Sequence[Job]) -> Sequence[Answer | Stale]:
        """Send one call for each kind of job: pictures and embeddings are two kinds, and so are pictures for two encoders during a swap."""
        kinds: dict[str | None, list[int]] = {}
        for place, job in enumerate(jobs):
            kinds.setdefault(job.pixels, []).append(place)
        together = [await self._send_kind([jobs[place] for place in places]) for places in kinds.values()]
        found = dict(zip(chain(*kinds.values()), chain(*together), strict=True))
        return [found[place] for place in range(len(jobs))]

    async def _send_kind(self, jobs: Sequence[Job]) -> Sequence[Answer | Stale]:
        rows, top_k = np.concatenate([job.rows for job in jobs]), max(job.top_k for job in jobs)
        answer = await self._ask(lambda: self._handle.assign.remote(rows, jobs[0].pixels, top_k))
        if isinstance(answer, Stale):
            return [answer] * len(jobs)
        ends = list(accumulate(map(len, jobs)))
        return [answer.part(end - len(job), end, job.top_k) for job, end in zip(jobs, ends, strict=True)]

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        """Return the model's version, the clusters from `start` to `stop`, and the number of all clusters."""
        return await self._ask(lambda: self._handle.clusters.remote(start, stop))

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, TRIES + 1):
            try:
                return await call()
            except BackPressureError:
                raise overloaded("the model has too much to do") from None
            except DeploymentUnavailableError:
                raise overloaded("no model is running") from None
            except RayActorError:
                if attempt == TRIES:
                    raise overloaded("the model's replicas died") from None
                await asyncio.sleep(0.1 * attempt)
        raise AssertionError("the last try returns or raises")


class Ingress:
    """Deployment that reads requests, decodes their pictures, asks the model and answers."""

    def __init__(self, model: DeploymentHandle, settings: ServeSettings) -> None:
        threads = math.ceil(settings.ingress.num_cpus)
        self._service = Service(settings, HandleClient(model, settings.model), threads)
        self._metrics = RequestMetrics()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service, self._gather, self._observe)

    def _observe(self, route: str, status: int, seconds: float, results: list[str]) -> None:
        self._metrics.observe(route, status, seconds, results)
        self._metrics.hold(self._service.gate.items, self._service.gate.bytes)

    async def _gather(self) -> str:
        return await asyncio.to_thread(lambda: gather(_metrics_agents()))


def _metrics_agents() -> list[str]:
    return [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes() if n["Alive"]]


def build(settings: ServeSettings) -> serve.Application:
    """Return the Serve application. Everything is checked here, because a builder that raises leaves the running application as it is.

    Raises :class:`RayclusterError` if the model is missing, damaged or does not compute, or if the tokens or the prefixes
    cannot be used.
    """
    settings = settings if isinstance(settings, ServeSettings) else validate(settings, ServeSettings, "args")
    if not read_tokens(settings.tokens_file) and not only_loopback(settings.allowed_hosts):
        log.warning(
            "serve     no token is needed, so everyone who reaches the port can send requests; to change that, set `tokens_file`, "
            "or %s in the application's runtime_env (cluster_configs/serve.yaml)",
            TOKENS_VARIABLE,
        )
    allowed_locations(settings.allowed_prefixes, settings.storage)
    Loaded.load(settings.run, settings.storage, "cpu", max_batch=1)
    # Serve stops old replicas only when the new ones answer.
    common: dict[str, Any] = {
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": 30,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        "logging_config": {"enable_access_log": False},
    }
    model = serve.deployment(
        ModelReplica,
        name="Model",
        ray_actor_options=_model_resources(settings),
        max_ongoing_requests=MODEL_ONGOING,
        max_queued_requests=MODEL_QUEUED,
        user_config=ModelChoice(run=settings.run).model_dump(),
        **_replicas(settings.model, target=2 * settings.model.max_batch),
        **common,
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        max_ongoing_requests=INGRESS_ONGOING,
        max_queued_requests=INGRESS_ONGOING,
        **_replicas(settings.ingress, target=32),
        **common,
    )
    return ingress.bind(model.bind(settings), settings)


def _model_resources(settings: ServeSettings) -> dict[str, float]:
    gpus = settings.model.num_gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return {"num_cpus": settings.model.num_cpus, "num_gpus": gpus}


def _replicas(section: Replicas, target: float) -> dict[str, Any]:
    """Return Serve's options for a fixed number of replicas, or for autoscaling towards `target` requests a replica."""
    if section.max_replicas <= section.min_replicas:
        return {"num_replicas": section.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": section.min_replicas,
            "max_replicas": section.max_replicas,
            "target_ongoing_requests": target,
        }
    }
