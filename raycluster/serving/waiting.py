"""When to try a model again that could not be loaded for the moment, and how to see that a model folder has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pyarrow import fs

from raycluster.storage.location import Location

RETRY_S, RETRY_MOST_S = 1.0, 300.0
"""First and longest pause in seconds before the next try; each pause is twice as long as the one before."""

State = tuple[str, tuple[tuple[str, int, int | None], ...]]
"""The URI of a model folder, and for each of its files the name, the size and the time of its last change (nanoseconds)."""


def state_of(folder: Location) -> State:
    """Return the present state of a model folder. It changes with every file that appears, vanishes or is written again."""
    infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    return folder.uri, tuple(sorted((info.base_name, info.size, info.mtime_ns) for info in infos))


@dataclass(frozen=True)
class Waiting:
    """A model that could not be loaded for the moment."""

    state: State | None
    """None if not even the folder of the model was found."""
    pause: float
    """Seconds from the failed try to the next one."""
    until: float
    """End of the pause by the monotonic clock."""

    @classmethod
    def after(cls, before: Waiting | None, state: State | None) -> Waiting:
        """Begin the next pause. It is twice as long as the pause in `before` if that was for the same state of the model."""
        pause = min(2 * before.pause, RETRY_MOST_S) if before and before.state == state else RETRY_S
        return cls(state, pause, time.monotonic() + pause)

    @property
    def left(self) -> float:
        """Seconds until the pause is over."""
        return max(0.0, self.until - time.monotonic())
