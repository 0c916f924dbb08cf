"""Find the processes of a Ray, kill one of Ray Train's workers when a training can resume, and wait until no core is held."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


def children(parent: int, name: str = "") -> Iterator[int]:
    """Ids of the processes that `parent` started and whose program's name ends with `name`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                of = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if of == parent and command.partition(b"\0")[0].endswith(name.encode()):
                yield int(entry.name)


def descendants(parent: int) -> list[int]:
    """Ids of the processes that `parent` started, and those that these started, and so on."""
    found = list(children(parent))
    return found + [below for each in found for below in descendants(each)]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below `folder`."""
    return list(folder.glob("**/state.safetensors"))


@contextmanager
def worker_killed_after_a_checkpoint(folder: Path) -> Iterator[None]:
    """While the body trains, kill one of Ray Train's workers once there is a checkpoint; fail if there was no worker to kill."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not checkpoints(folder):
            time.sleep(0.05)
        workers = [pid for raylet in children(os.getpid(), "raylet") for pid in children(raylet, "RayTrainWorker")]
        for pid in workers[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    watcher = threading.Thread(target=kill)
    watcher.start()
    yield
    watcher.join()
    assert killed


def wait_for_free_cores() -> None:
    """Wait until no task and no actor holds a core. Ray says so a moment after the last one has ended."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
