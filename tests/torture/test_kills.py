"""Test that a run writes the same tables when a process is killed at a random moment of a stage.

    make torture                                                      # or: pytest -m torture tests/torture/test_kills.py -s

The process is the driver, an encoder actor, a Train worker, a task that writes shards, or the raylet. Every trial is seeded by its number,
starts from nothing, kills one process once, and calls the run again until it ends well.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from ray_workers import children, descendants
from run_commands import compare, finish, start, tables

from raycluster.demo.drawing import draw_dataset

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

TRIALS = 24
ON_SHARDS = 6
"""More trials, in which pictures are stored in shards first, and the stages that write and read those are disturbed."""
IMAGES = 320
STAGES = (
    "manifest",
    "shard",
    "embed",
    "semantics",
    "train",
    "baseline",
    "finetune",
    "reembed",
    "assign",
    "describe",
    "evaluate",
    "report",
)
WITHOUT_SHARDS = tuple(stage for stage in STAGES if stage != "shard")
VICTIMS = {
    "driver": WITHOUT_SHARDS,
    "raylet": WITHOUT_SHARDS,
    "EncodeRows": ("embed", "reembed"),
    "RayTrainWorker": ("train", "finetune"),
}
"""The processes that are killed, and the stages in which there is such a process."""
VICTIMS_ON_SHARDS = {
    "write_part": ("shard",),
    "driver": ("shard", "finetune"),
    "RayTrainWorker": ("finetune",),
    "raylet": ("shard", "finetune"),
}
RUNS = 4
"""The number of calls of the command after which it must have ended well."""


@dataclass(frozen=True)
class Reference:
    """A run that nobody disturbed."""

    tables: dict[str, pa.Table]
    seconds: dict[str, float]
    """How long each stage took."""


def configuration(images: Path, nouns: Path, folder: Path, on_shards: bool) -> Path:
    """The YAML file (JSON is YAML) of a run below `folder`."""
    config = {
        "images": str(images),
        "output": str(folder / "out"),
        "clusters": 4,
        "encoder": {"model": "builtin"},
        "vocabulary": {"source": str(nouns), "cache": str(folder / "cache")},
        "method": {"name": "dxmc", "epochs": 30, "batch_size": 64},
        "shards": {"enabled": on_shards},
        "finetune": {"enabled": True, "rank": 4, "batch_size": 32, "epochs": 2, "checkpoint_seconds": 2},
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, three of which cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    draw_dataset(folder, IMAGES, ("house", "fish", "tree", "star"), seed=11)
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    return folder


@pytest.fixture(scope="module")
def nouns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary."""
    file = tmp_path_factory.mktemp("nouns") / "nouns.txt"
    file.write_text("house\nfish\ntree\nstar\ncar\ncup\nbird\nflower\n")
    return file


@pytest.fixture(scope="module")
def references(images: Path, nouns: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Reference]:
    """The tables of an undisturbed run, with shards or without."""

    @cache
    def reference(on_shards: bool) -> Reference:
        folder = tmp_path_factory.mktemp("reference")
        result = finish(start(configuration(images, nouns, folder, on_shards), folder / "log"))
        assert result is not None, (folder / "log").read_text()
        assert list(result["stages"]) == list(STAGES if on_shards else WITHOUT_SHARDS)
        seconds = {name: stage["seconds"] for name, stage in result["stages"].items()}
        return Reference(tables(result), seconds)

    return reference


def find(victim: str, driver: int) -> int | None:
    """Id of the process to kill, if it lives."""
    if victim == "driver":
        return driver
    raylets = list(children(driver, "raylet"))
    if victim == "raylet":
        return raylets[0] if raylets else None
    for raylet in raylets:
        for pid in children(raylet, ""):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if victim.encode() in title:
                return pid
    return None


def kill(run: subprocess.Popen[bytes], log: Path, victim: str, stage: str, delay: float) -> bool:
    """Kill the victim `delay` seconds after the stage has begun; return False if it was not there before the stage was over."""
    begun = f"{stage:<9} running".encode()
    while begun not in log.read_bytes():
        if run.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(delay)
    following = STAGES[STAGES.index(stage) + 1 :]
    while run.poll() is None and not any(f"{name:<9} running".encode() in log.read_bytes() for name in following):
        pid = find(victim, run.pid)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("trial", range(TRIALS + ON_SHARDS))
def test_killed_anywhere_the_tables_are_the_same(
    trial: int, images: Path, nouns: Path, references: Callable[[bool], Reference], tmp_path: Path
) -> None:
    draw, on_shards = random.Random(trial), trial >= TRIALS
    reference, victims = references(on_shards), VICTIMS_ON_SHARDS if on_shards else VICTIMS
    victim = list(victims)[trial % len(victims)]
    stage = draw.choice(victims[victim])
    delay = draw.uniform(0, reference.seconds[stage])
    file, log = configuration(images, nouns, tmp_path, on_shards), tmp_path / "log"
    log.touch()
    run = start(file, log)
    hit = kill(run, log, victim, stage, delay)
    below = descendants(run.pid)
    result, runs, started = finish(run), 1, time.monotonic()
    while result is None and runs < RUNS:
        result, runs = finish(start(file, log)), runs + 1
    print(
        f"trial {trial}: {victim} {delay:.1f} s into {stage}, {'hit' if hit else 'not there'}, {runs} runs, {time.monotonic() - started:.0f} s"
    )
    for pid in below:  # a killed driver leaves processes that end by themselves, but not always before the next trial
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert result is not None, log.read_text()
    if victim in ("EncodeRows", "RayTrainWorker", "write_part"):
        assert runs == 1, "Ray should have replaced it"
    compare(tables(result), reference.tables)
