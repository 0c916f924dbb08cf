"""Run a raycluster command and watch the memory of all its processes."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_measured(command: list[str]) -> tuple[dict[str, Any], float]:
    """The command's JSON line, and the highest proportional set size of its whole process tree, Ray's included, in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    printed, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors)
    return json.loads(printed), peak[0]


def _watch(root: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.5):
        peak[0] = max(peak[0], sum(_pss(pid) for pid in _tree(root)) / 1024)


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    todo = [root]
    while todo:
        yield (pid := todo.pop())
        todo += children.get(pid, [])


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
