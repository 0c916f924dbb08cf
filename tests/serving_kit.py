"""What the tests of the endpoint share: requests, and a model without Ray behind the endpoint's interface."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import requests
import torch
import uvicorn
from drawn_run import NOUNS
from torch.nn.functional import normalize

from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainingData
from raycluster.model.files import load_model, save_model
from raycluster.model.model import make_memory
from raycluster.pipeline.run import RunResult
from raycluster.section import validate
from raycluster.serving.api import create_app
from raycluster.serving.live_model import Answer, Job, LiveModel, ModelInfo, Stale
from raycluster.serving.service import Service
from raycluster.serving.settings import ServeSettings
from raycluster.storage.location import locate
from raycluster.tables.rows import vectors

UNTIL = 60.0


def training_rows(run: RunResult) -> np.ndarray:
    """The embeddings of the run's good pictures, as the encoder gave them."""
    table = pq.read_table(run.tables["embeddings"])
    return vectors(table.filter(pc.equal(table["status"], "ok")))


def make_model(
    run: RunResult,
    folder: Path,
    method: dict[str, Any],
    more: dict[str, bytes] | None = None,
    encoder: dict[str, Any] | None = None,
    spoil: bool = False,
) -> str:
    """Make a model folder for another method on the run's embeddings, fitted or with untrained heads; return its path.

    `encoder` is the record of the encoder, by default that of the run. With `spoil` the numbers of the method are NaN.
    """
    base, images = load_model(run.output), torch.from_numpy(training_rows(run))
    config = validate(method, MethodConfig, "method")
    made = registry.build(config, base.record["dim"], base.record["n_clusters"], len(images), seed=1)
    rng = torch.Generator().manual_seed(0)
    nouns = normalize(torch.randn(len(NOUNS), images.shape[1], generator=rng), dim=1)
    counterparts = normalize(images.float() @ nouns.T, dim=1) @ nouns
    data = TrainingData(torch.arange(len(images)), images, normalize(counterparts, dim=1), nouns)
    if isinstance(made, FittedMethod):
        made.fit(data)
    memory, _ = make_memory(made, images.numpy())
    clusters = [{**cluster, "name": f"{method['name']} {cluster['name']}"} for cluster in base.clusters]
    facts = {key: base.record[key] for key in ("seed", "training")}
    if spoil:
        for tensor in made.state_dict().values():
            tensor.fill_(torch.nan)
    save_model(locate(str(folder)), made, memory, encoder or base.record["encoder"], clusters, facts, more)
    return str(folder)


class LocalModel:
    """A model in this process, behind the interface that the endpoint knows."""

    def __init__(self, live: LiveModel) -> None:
        self.live = live
        self.calls: list[Job] = []

    async def model_info(self) -> ModelInfo:
        return self.live.info

    async def assign(self, rows: np.ndarray, pixels: str | None, top_k: int) -> Answer | Stale:
        self.calls.append(Job(rows, pixels, top_k))
        return (await asyncio.to_thread(self.live.answer, [self.calls[-1]]))[0]

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        return self.live.info.version, self.live.gallery.clusters[start:stop], len(self.live.gallery.clusters)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def multipart(files: Sequence[Path]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("files", (path.name, path.read_bytes(), "image/png")) for path in files]


def post(url: str, files: Sequence[Path], **options: Any) -> requests.Response:
    return requests.post(f"{url}/v1/assign", files=multipart(files), timeout=UNTIL, **options)


class LocalEndpoint:
    """The whole API on a real HTTP server in a thread of this process, with the model beside it and without Ray."""

    def __init__(self, live: LiveModel, **settings: Any) -> None:
        self.port, self.model = free_port(), LocalModel(live)
        self.url = f"http://127.0.0.1:{self.port}"
        self.observed: list[tuple[str, int, list[str]]] = []
        self.settings = ServeSettings.model_validate({"run": live.info.folder, **settings})

    def __enter__(self) -> LocalEndpoint:
        async def metrics() -> str:
            return "nothing 1\n"

        def observe(route: str, status: int, seconds: float, results: list[str]) -> None:
            self.observed.append((route, status, results))

        self.service = Service(self.settings, self.model, threads=2)
        app = create_app(self.service, metrics, observe)
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def wait_until(condition: Callable[[], Any], seconds: float = UNTIL) -> Any:
    """Wait until `condition` gives a true value, and return it."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return value


class ServeEndpoint:
    """The application deployed from a Serve configuration, through the interface of the controller that `serve deploy` uses."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.port, self.url = free_port(), ""
        small = {"num_cpus": 0.25, "max_replicas": 1}
        self.args = {"ingress": small, "model": small, **args}

    def __enter__(self) -> ServeEndpoint:
        from ray import serve

        serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        self.url = f"http://127.0.0.1:{self.port}"
        self.deploy()
        assert self.wait_for_status() == "RUNNING", self.message()
        return self

    def __exit__(self, *_: object) -> None:
        from ray import serve

        serve.shutdown()

    def deploy(self, deployments: Sequence[dict[str, Any]] = (), **changes: Any) -> None:
        """Deploy like `serve deploy`, with `changes` to the builder's arguments and the overrides in `deployments`."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": "raycluster",
            "import_path": "raycluster.serving.app:build",
            "args": {**self.args, **changes},
            "deployments": list(deployments),
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def status(self) -> str:
        from ray import serve

        application = serve.status().applications.get("raycluster")
        return application.status.value if application else "NOT_STARTED"

    def message(self) -> str:
        from ray import serve

        return str(serve.status().applications["raycluster"].message)

    def wait_for_status(self) -> str:
        """Wait for `RUNNING`, `DEPLOY_FAILED` or `UNHEALTHY`, and return it."""
        time.sleep(0.5)
        wait_until(lambda: self.status() in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"), 180)
        return self.status()

    def model(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/v1/model", timeout=UNTIL).json())


class Load:
    """A context in which several threads send requests without pause; it keeps every reply."""

    def __init__(self, url: str, files: Sequence[Path], threads: int = 3) -> None:
        self.replies: list[tuple[int, Any]] = []
        self._form, self._url = multipart(files), url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(UNTIL)

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                try:
                    reply = session.post(f"{self._url}/v1/assign", files=self._form, timeout=UNTIL)
                    self.replies.append((reply.status_code, reply.json() if reply.ok else reply.text))
                except requests.RequestException as error:
                    self.replies.append((0, str(error)))

    @property
    def failed(self) -> list[tuple[int, Any]]:
        return [reply for reply in self.replies if reply[0] != 200]

    def versions(self) -> list[str]:
        """The models that answered, in the order in which they first did."""
        return list(dict.fromkeys(body["model"]["version"] for status, body in self.replies if status == 200))
