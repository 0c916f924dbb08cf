"""When a model that could not be loaded for the moment is tried again, and how one folder of a model is told from another."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pyarrow import fs

from raycluster.storage import Location

RETRY_S, RETRY_MOST_S = 1.0, 300.0
"""First and longest pause before the next try; each is twice the one before."""

State = tuple[str, tuple[tuple[str, int, int | None], ...]]
"""A model folder, and name, size and time of each of its files."""


def state_of(folder: Location) -> State:
    """The state of a model folder now: it changes with every file that appears, vanishes or is written again."""
    infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    return folder.uri, tuple(sorted((info.base_name, info.size, info.mtime_ns) for info in infos))


@dataclass(frozen=True)
class Waiting:
    """A model that could not be loaded for the moment."""

    state: State | None
    """None where not even its folder was found."""
    pause: float
    until: float
    """By the monotonic clock."""

    @classmethod
    def after(cls, before: Waiting | None, state: State | None) -> Waiting:
        """The next pause, twice as long as the one before if it is for the same model."""
        pause = min(2 * before.pause, RETRY_MOST_S) if before and before.state == state else RETRY_S
        return cls(state, pause, time.monotonic() + pause)

    @property
    def left(self) -> float:
        """Seconds until the pause is over."""
        return max(0.0, self.until - time.monotonic())
