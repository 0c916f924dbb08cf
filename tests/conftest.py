"""What the tests share: one local Ray, the optional folder of real data, and CI's rule about skips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("RAYCLUSTER_SHARED", ROOT.parent / "shared"))

ALLOWED_SKIPS = ("real data", "S3 endpoint")
"""On CI (RAYCLUSTER_CI=1) a skip whose reason holds none of these is a failure: `.ci/run` installs everything else."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real features, photographs and models; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real data: no folder `shared` beside the project; set RAYCLUSTER_SHARED to have it")
    return SHARED


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need one."""
    import ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    ray.init(address="local", num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("RAYCLUSTER_CI") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped on CI, where nothing may be missing: {reason}"
