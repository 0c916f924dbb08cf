"""Test that a prune which is killed at a random moment loses nothing: a run and another prune bring the folder to the same end.

    make torture                                            # or: pytest -m torture tests/torture/test_prune_kills.py -s

The process is the driver, or a task that writes tables again. In half of the trials the pictures were removed by a whole run, in the others
by a new manifest alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ray_workers import children, descendants
from run_commands import compare, finish, start, start_command, tables

from raycluster.demo.drawing import draw_dataset

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

TRIALS, IMAGES = 16, 160
CONFIG = "run.yaml"


@dataclass(frozen=True)
class Folder:
    """A folder from which pictures were removed, with results of two configurations, and what it is to become."""

    root: Path
    gone: list[str]
    tables: dict[str, pa.Table]
    files: set[str]
    seconds: float
    """How long a prune takes."""


def configuration(root: Path, photos: Path, **changes: object) -> Path:
    config = {
        "images": str(photos),
        "output": str(root / "out"),
        "clusters": 4,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(photos.parent / "nouns.txt"), "cache": str(photos.parent / "cache")},
        "method": {"name": "kmeans"},
        "shards": {"enabled": True},
        **changes,
    }
    file = root / CONFIG
    file.write_text(json.dumps(config))
    return file


def files(output: Path) -> set[str]:
    return {str(file.relative_to(output)) for file in output.rglob("*") if file.is_file()}


def traces(output: Path, gone: list[str]) -> Iterator[str]:
    for file in output.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            text = repr(pq.read_table(file, partitioning=None).to_pylist()) if file.suffix == ".parquet" else ""
            yield from (f"{file}: {name}" for name in gone if name.encode() in content or name in text)


def ended(process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    result = finish(process)
    assert result is not None, log.read_text()
    return result


@pytest.fixture(scope="module", params=["a whole run", "a manifest"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    base = tmp_path_factory.mktemp("base")
    photos, log = base / "photos", base / "log"
    draw_dataset(photos, IMAGES, ("house", "fish", "tree", "star"), seed=11)
    (base / "nouns.txt").write_text("house\nfish\ntree\nstar\ncar\ncup\nbird\nflower\n")
    ended(start(configuration(base, photos, clusters=5), log), log)
    result = ended(start(configuration(base, photos), log), log)
    listed = tables(result)["manifest"]["image_id"].to_pylist()
    gone = [listed[place] for place in (0, 1, 77, 159)]
    for name in gone:
        (photos / name).unlink()
    command = "run" if request.param == "a whole run" else "manifest"
    ended(start_command([command, "--config", str(base / CONFIG)], log), log)
    # This copy is what the others are compared with.
    copy = tmp_path_factory.mktemp("reference")
    shutil.copytree(base / "out", copy / "out")
    file = configuration(copy, photos)
    result = ended(start(file, log), log)
    started = time.monotonic()
    ended(start_command(["prune", "--output", str(copy / "out"), "--yes"], log), log)
    seconds = time.monotonic() - started
    assert list(traces(copy / "out", gone)) == []
    return Folder(base, gone, tables(result), files(copy / "out"), seconds)


def kill(process: subprocess.Popen[bytes], victim: str, output: Path, delay: float) -> bool:
    """Kill the victim `delay` seconds after the first file is deleted; return False if the command ended before."""
    history = output / "_stages" / "history"
    count = len(list(history.iterdir()))
    while process.poll() is None and len(list(history.iterdir())) == count:
        time.sleep(0.0005)
    time.sleep(delay)
    while process.poll() is None:
        below = [pid for raylet in children(process.pid, "raylet") for pid in children(raylet)]
        for pid in [process.pid] if victim == "driver" else below:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if victim == "driver" or victim.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        time.sleep(0.001)
    return False


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_anywhere_the_folder_comes_to_the_same_end(trial: int, folder: Folder, tmp_path: Path) -> None:
    draw, log, output = random.Random(trial), tmp_path / "log", tmp_path / "out"
    victim = "remove_rows" if trial % 4 == 3 else "driver"
    # First all is deleted that may go as a whole, in hundredths of a second. Then Ray starts, and tables are written again.
    delay = {0: draw.uniform(0, 0.02), 1: draw.uniform(0, 0.1), 2: draw.uniform(0, folder.seconds), 3: 0}[trial % 4]
    shutil.copytree(folder.root / "out", output)
    config = configuration(tmp_path, folder.root / "photos")
    command = ["prune", "--output", str(output), "--yes"]
    process = start_command(command, log)
    hit = kill(process, victim, output, delay)
    below = descendants(process.pid)
    result = finish(process)
    for pid in below:  # a killed driver leaves processes that end by themselves, but not always before the next command
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    print(
        f"trial {trial}: {victim} after {delay:.1f} s, {'hit' if hit else 'not there'}, {'ended' if result else 'killed'}"
    )
    if victim == "remove_rows":
        assert result is not None, "Ray should have called the task again"
    after = ended(start(config, log), log)
    # Rows of the images that are gone may still be there.
    found = {
        name: table.filter(pc.is_in(table["row_id"], folder.tables[name]["row_id"]))
        for name, table in tables(after).items()
    }
    compare(found, folder.tables)
    ended(start_command(command, log), log)
    assert files(output) == folder.files
    assert list(traces(output, folder.gone)) == []
    once_more = ended(start(config, log), log)
    assert {stage["state"] for stage in once_more["stages"].values()} == {"skipped"}  # type: ignore[attr-defined]
    compare(tables(once_more), folder.tables)
