"""What the tests of the endpoint share: configurations, requests, a model without Ray behind the endpoint's interface."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
import uvicorn

from raycluster.serving.api import create_app
from raycluster.serving.live import Answer, Card, Job, LiveModel, Stale
from raycluster.serving.service import Service
from raycluster.serving.settings import ServeSettings

KINDS = ("house", "fish", "tree", "star")
NOUNS = (*KINDS, "car", "cup", "bird", "flower", "animal", "building", "plant", "vehicle")
UNTIL = 60.0


def configuration(photos: Path, output: Path, **changes: Any) -> dict[str, Any]:
    nouns = output.parent / "nouns.txt"
    nouns.write_text("\n".join(NOUNS))
    return {
        "images": str(photos),
        "output": str(output),
        "clusters": 4,
        "max_failed_fraction": 0.2,
        "encoder": {"model": "builtin", "precision": "fp32"},
        "vocabulary": {"source": str(nouns), "prompts": ["a picture of a {}"], "cache": str(output.parent / "cache")},
        "method": {"name": "kmeans"},
        "resources": {"encoder_actors": 1},
        **changes,
    }


class LocalModel:
    """A model in this process, behind the interface that the endpoint knows."""

    def __init__(self, live: LiveModel) -> None:
        self.live = live
        self.calls: list[Job] = []

    async def card(self) -> Card:
        return self.live.card

    async def assign(self, rows: np.ndarray, pixels: str | None, top_k: int) -> Answer | Stale:
        self.calls.append(Job(rows, pixels, top_k))
        return (await asyncio.to_thread(self.live.answer, [self.calls[-1]]))[0]

    async def clusters(self, start: int, stop: int) -> tuple[str, list[dict[str, Any]], int]:
        return self.live.card.version, self.live.gallery.clusters[start:stop], len(self.live.gallery.clusters)


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
        self.settings = ServeSettings.model_validate({"run": live.card.folder, **settings})

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
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return value
