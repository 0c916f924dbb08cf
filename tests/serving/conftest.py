"""Fixtures of the endpoint, on a run with every kind of file that it must handle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_kit import LocalEndpoint, ServeEndpoint

from raycluster.config import StorageConfig
from raycluster.pipeline.run import RunResult
from raycluster.serving.live_model import LiveModel


@pytest.fixture(scope="session")
def run(kmeans_run: RunResult) -> RunResult:
    return kmeans_run


@pytest.fixture(scope="session")
def files(photos: Path) -> list[Path]:
    """Twenty good pictures, five of a kind."""
    return sorted(photos.glob("*/*.jpg"))[::4]


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
    """The endpoint on the shared Ray, deployed as `serve deploy` does. Limits that a test wants to reach are tight.

    It does not live for the session, because its replicas reserve CPUs, and runs of other tests would wait for these forever.
    """
    limits = {"max_items": 16, "max_body_bytes": 2**20, "body_seconds": 3.0, "max_waiting_items": 64}
    with ServeEndpoint({"run": run.output, "limits": limits}) as endpoint:
        yield endpoint
