"""What the tests of the endpoint share: configurations, requests, a model without Ray behind the endpoint's interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests

from raycluster.serving.live import Answer, Card, Job, LiveModel, Stale

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
