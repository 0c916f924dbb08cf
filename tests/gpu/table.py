"""The table of results, and what all checks need to measure."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


class Table:
    """Rows of measured values, some with a bound that makes them right or wrong."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, value: float, unit: str = "", at_least: float | None = None) -> None:
        """Add one value. With `at_least`, a smaller value (or NaN) is a wrong result."""
        row: dict[str, Any] = {"name": name, "value": float(f"{value:.5g}"), "unit": unit}
        if at_least is not None:
            row |= {"at_least": at_least, "ok": bool(value >= at_least)}
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    @property
    def all_ok(self) -> bool:
        """Whether no value is below its bound."""
        return all(row.get("ok", True) for row in self.rows)


def timed(compute: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The result, and the seconds until the device has it."""
    _finish(device)
    started = time.perf_counter()
    result = compute()
    _finish(device)
    return result, time.perf_counter() - started


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float:
    """The peak of the GPU's memory since the last call, in GiB."""
    if device == "cpu":
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak
