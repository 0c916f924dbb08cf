"""One small run with every kind of file the endpoint must cope with, and the endpoint on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_kit import KINDS, LocalEndpoint, ServeEndpoint, configuration

import raycluster
from raycluster.config import StorageConfig
from raycluster.demo.drawing import draw_dataset
from raycluster.pipeline import RunResult
from raycluster.serving.live import LiveModel


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw_dataset(folder, 24, KINDS, seed=11)
    (folder / "text.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> RunResult:
    return raycluster.run(configuration(photos, tmp_path_factory.mktemp("run") / "out"), until="describe")


@pytest.fixture(scope="session")
def files(photos: Path) -> list[Path]:
    """The good pictures."""
    return sorted(path for path in photos.rglob("*") if path.suffix in (".png", ".jpg") and path.name != "text.jpg")


@pytest.fixture(scope="session")
def live(run: RunResult) -> LiveModel:
    return LiveModel(run.output, StorageConfig(), "cpu", 32)


@pytest.fixture(scope="session")
def local(live: LiveModel) -> Iterator[LocalEndpoint]:
    """The API without Ray."""
    with LocalEndpoint(live, limits={"max_items": 8, "max_body_bytes": 2**20, "body_seconds": 1.0}) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def endpoint(run: RunResult) -> Iterator[ServeEndpoint]:
    """The endpoint on the shared Ray, deployed as `serve deploy` does; tight limits where a test wants to reach them.

    Not for the session: its replicas reserve CPUs, for which the runs of other tests would wait for ever.
    """
    limits = {"max_items": 16, "max_body_bytes": 2**20, "body_seconds": 3.0, "max_waiting_items": 64}
    with ServeEndpoint({"run": run.output, "limits": limits}) as endpoint:
        yield endpoint
