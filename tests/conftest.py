"""What the tests share: one local Ray, the optional folder of real data, and CI's rule about skips."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import before_imports  # the first of all
import drawn_run
import pytest
import s3_server

import raycluster
from raycluster.config import StorageConfig
from raycluster.pipeline.run import RunResult

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("RAYCLUSTER_SHARED", ROOT.parent / "shared"))

ALLOWED_SKIPS = ("real data",)
"""On CI (RAYCLUSTER_CI=1) a skip is a failure unless its reason contains one of these, because `.ci/run` installs everything else."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real features, photographs and models; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real data: no folder `shared` beside the project; set RAYCLUSTER_SHARED to have it")
    return SHARED


BUCKET = "raycluster-test"


@pytest.fixture(scope="session")
def s3() -> Iterator[StorageConfig]:
    """How to reach an S3 server with the bucket `raycluster-test`, which is empty (or, on a real server, may have been used before)."""
    from pyarrow import fs

    with contextlib.nullcontext(before_imports.S3) if before_imports.S3 else s3_server.started() as url:
        storage = StorageConfig(endpoint_url=url, region="us-east-1")
        fs.S3FileSystem(endpoint_override=url, region="us-east-1", allow_bucket_creation=True).create_dir(BUCKET)
        yield storage


def start_ray(**resources: float) -> None:
    import ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, **resources)


LOCAL = {"num_cpus": max(2, os.cpu_count() or 2)}


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need one."""
    import ray

    start_ray(**LOCAL)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def own_ray() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context in which another Ray, with the given resources, replaces the one that all tests share."""
    import ray

    @contextlib.contextmanager
    def started(**resources: float) -> Iterator[None]:
        shared_one = ray.is_initialized()
        ray.shutdown()
        start_ray(**resources)
        try:
            yield
        finally:
            ray.shutdown()
            if shared_one:
                start_ray(**LOCAL)

    return started


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_run.draw(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def dxmc_run(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[dict[str, Any], RunResult]:
    """A whole run on `photos` with trained heads: its configuration and its result."""
    method = {"name": "dxmc", "epochs": 20, "batch_size": 32}
    config = drawn_run.configuration(photos, tmp_path_factory.mktemp("dxmc") / "out", method=method)
    return config, raycluster.run(config)


@pytest.fixture(scope="session")
def kmeans_run(dxmc_run: tuple[dict[str, Any], RunResult], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same run with k-means, up to the names of its clusters."""
    output = tmp_path_factory.mktemp("kmeans") / "out"
    return drawn_run.copied(dxmc_run[0], output, until="describe", method={"name": "kmeans"})


SHARED_RUN = "dxmc_run"
"""The fixture of the run on drawn pictures, which one process makes for all files that use it."""
USERS_OF_IT = ("tests/serving/", "tests/pipeline/test_new_pictures.py", "tests/pipeline/test_run.py")
"""The paths of these files, because the process that distributes the tests knows only the names of the tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray, and put them in order.

    A test whose fixtures start Ray gets the mark `ray`, whichever fixture starts it: `.ci/lowest.py` runs the tests without this mark.

    The order of files: first those that share a run; then those that fork workers, because torch refuses to compute gradients in a fork of
    a process whose threads have computed some; then those with Ray; then the others, whose short tests keep both processes busy until the
    end. Of each kind those with the longest time limits come first, because they take longest.
    """
    with_shared_run, with_ray, with_forks = set(), set(), set()
    limits: dict[Path, float] = {}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"local_ray", "own_ray"} & fixtures:
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray"):
            with_ray.add(item.path)
        limit = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0), limit.args[0] if limit else 0)
        if SHARED_RUN in fixtures:
            assert item.nodeid.startswith(USERS_OF_IT), f"add {item.nodeid} to USERS_OF_IT"
        if item.nodeid.startswith(USERS_OF_IT):
            with_shared_run.add(item.path)
        module = getattr(item, "module", None)
        if hasattr(module, "on_workers"):
            with_forks.add(item.path)
        elif not (item.get_closest_marker("ray") or hasattr(module, "subprocess") or {"s3", "shared"} & fixtures):
            item.add_marker(pytest.mark.fast)
    orders = (with_shared_run, with_forks, with_ray)
    items.sort(key=lambda item: (*(item.path not in files for files in orders), -limits[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of a file, and all files that share a run. (With pytest 9 the marks of `--dist loadgroup` do nothing.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SHARED_RUN if nodeid.startswith(USERS_OF_IT) else nodeid.split("::", 1)[0]

    return ByFile(config, log)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("RAYCLUSTER_CI") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped on CI, where nothing may be missing: {reason}"
