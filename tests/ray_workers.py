"""Kill one of Ray Train's workers at a moment that shows whether a training resumes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def processes(title: bytes) -> Iterator[int]:
    """Ids of the processes whose command line holds `title`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if title in command:
                yield int(entry.name)


def children(parent: int, name: str) -> Iterator[int]:
    """Ids of the processes of this name that `parent` started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                rest, _, fields = (entry / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if rest.partition("(")[2] == name and int(fields.split()[1]) == parent:
                yield int(entry.name)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below `folder`."""
    return list(folder.glob("**/state.safetensors"))


@contextmanager
def worker_killed_after_a_checkpoint(folder: Path) -> Iterator[None]:
    """While the body trains, kill one of Ray Train's workers once there is a checkpoint; fails if there was none to kill."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not checkpoints(folder):
            time.sleep(0.05)
        for pid in list(processes(b"RayTrainWorker"))[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    watcher = threading.Thread(target=kill)
    watcher.start()
    yield
    watcher.join()
    assert killed
