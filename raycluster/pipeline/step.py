"""One step of a plan: a stage under one fingerprint, what is to be done, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from raycluster.tables.markers import Marker


class Action(Enum):
    """What a step of the plan does."""

    RUN = "run"
    SKIP = "skip"


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str
    """Name of the stage."""
    fingerprint: str
    path: str
    """Folder of the result, relative to the run folder."""
    recipe: dict[str, Any]
    action: Action
    reason: str
    """Why it runs or is skipped, in words."""
    marker: Marker | None
    """The finished result, if there is one; of a stage that follows rows perhaps of fewer rows."""

    @property
    def runs(self) -> bool:
        """Whether there is something to do."""
        return self.action is Action.RUN
