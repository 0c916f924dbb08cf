"""Test that kills during the import, the compaction and the assignment of many small partitions lose no row and double none.

    make torture                                                           # or: pytest -m torture tests/torture/test_partitions.py -s

Partitions have 128 rows and pieces 16, so that some hundred merges are under way while processes are killed, again and again, in one run
folder: the driver, and workers in which tasks read, merge or assign.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_workers import descendants
from run_commands import compare, finish, start, tables

from raycluster.storage.location import locate
from raycluster.tables.files import part_files
from raycluster.tables.rows import vector_column

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

ROWS, DIM, KILLS = 30_000, 8, 12
PROGRAM = """
import sys, ray
from raycluster.cli import main
def small():
    from raycluster.encoder import ready_made
    from raycluster.tables import compaction, files
    ready_made.PIECE_ROWS = 16
    for module in (files, compaction):
        module.PARTITION_ROWS = 128
small()
hook = {"worker_process_setup_hook": small}
ray.init(address="local", include_dashboard=False, log_to_driver=False, runtime_env=hook)
sys.exit(main(sys.argv[1:]))
"""


def configuration(folder: Path, embeddings: Path) -> Path:
    """The YAML file (JSON is YAML) of a run below `folder`."""
    config = {
        "embeddings": str(embeddings),
        "output": str(folder / "out"),
        "clusters": 4,
        "method": {"name": "kmeans", "train_sample": 1000},
        "report": {"map_sample": 0},
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings in four files, some of them null."""
    folder = tmp_path_factory.mktemp("embeddings")
    draw = np.random.default_rng(0)
    for start_row in range(0, ROWS, ROWS // 4):
        values = vector_column(draw.standard_normal((ROWS // 4, DIM)).astype(np.float16))
        holes = pa.array(np.arange(ROWS // 4) % 97 == 0)
        column = pa.array(
            [None if hole else row for row, hole in zip(values.to_pylist(), holes.to_pylist(), strict=True)]
        )
        ids = [f"{i:06d}" for i in range(start_row, start_row + ROWS // 4)]
        pq.write_table(pa.table({"image_id": ids, "embedding": column}), folder / f"{start_row:06d}.parquet", 1000)
    return folder


def test_kills_at_random_moments_lose_no_row_and_double_none(embeddings: Path, tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    reference = finish(start(configuration(tmp_path / "undisturbed", embeddings), tmp_path / "log", PROGRAM))
    assert reference is not None, (tmp_path / "log").read_text()
    draw, seen = random.Random(0), set[str]()
    file, log = configuration(tmp_path, embeddings), tmp_path / "log of the killed"
    for trial in range(KILLS):
        log.write_bytes(b"")
        run = start(file, log, PROGRAM)
        stage = _wait_for(("embed", "assign"), run, log)
        time.sleep(draw.uniform(0.1, 1.5))
        below = descendants(run.pid)
        workers = [pid for pid in below if _is_worker(pid)]
        if workers and trial % 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
            time.sleep(draw.uniform(0.1, 2))
        run.kill()
        finish(run)
        for (
            pid
        ) in below:  # a killed driver leaves processes that end by themselves, but not always before the next trial
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen.add(stage)
        print(f"trial {trial}: killed in {stage}; {_held(tmp_path / 'out')}", flush=True)
    assert "embed" in seen
    result = finish(start(file, log, PROGRAM))
    assert result is not None, log.read_text()
    found = tables(result)
    assert len(found["embeddings"]) == len(found["assignments"]) == ROWS
    compare(found, tables(reference))
    for name in ("embeddings", "assignments"):
        files = locate(result["tables"][name]).list(".parquet")
        assert part_files(locate(result["tables"][name])) == files, "what does not count any more is deleted"
        assert len(files) == -(-ROWS // 128)
        assert all(each.name.startswith("partition-") for each in files)


def _wait_for(stages: tuple[str, ...], run: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until one of the stages runs, and return its name; if the run has ended before, an empty string."""
    while run.poll() is None:
        for stage in stages:
            if f"{stage:<9} running".encode() in log.read_bytes():
                return stage
        time.sleep(0.01)
    return ""


def _is_worker(pid: int) -> bool:
    """Whether it is a process in which Ray runs a task."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _held(output: Path) -> str:
    """How many files of each kind the tables have."""
    names = [path.name.partition("-")[0] for path in output.glob("*/*/*.parquet")]
    return ", ".join(f"{names.count(kind)} {kind} files" for kind in ("part", "partition"))
