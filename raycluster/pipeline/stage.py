"""What a stage is: a name, what its result depends on, and the function that makes the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from raycluster.pipeline.context import RunContext
from raycluster.pipeline.step import Step
from raycluster.tables.markers import Facts, Marker


class Keeps(Enum):
    """What of a finished result is kept when images are added."""

    FIXED = "fixed"
    """Nothing: the result depends on its recipe, and the recipe on the images."""
    ROWS = "rows"
    """All rows: the added ones are done alone, into the same folder."""
    TRAINED = "trained"
    """The result as it is. Its name holds the manifest that it was made from."""
    TRAINED_ROWS = "trained rows"
    """What was made from the first images is kept as it is, and the added rows are done with it."""

    @property
    def follows_rows(self) -> bool:
        """Whether the added rows are done; the marker then says which manifest is covered."""
        return self in (Keeps.ROWS, Keeps.TRAINED_ROWS)

    @property
    def is_trained(self) -> bool:
        """Whether a result of fewer images is still the result."""
        return self in (Keeps.TRAINED, Keeps.TRAINED_ROWS)


@dataclass(frozen=True)
class Recipe:
    """What the result of a stage depends on."""

    values: dict[str, Any]
    """Plain data: parts of the configuration, and fingerprints of the stages before."""
    same_as: str | None = None
    """Another stage that writes the same table from the same recipe, under whose name the fingerprint is made."""
    fingerprint: str | None = None
    """The fingerprint, if it is known otherwise."""


class Covers(Facts):
    """What every stage that follows the rows of the manifest leaves."""

    manifest: str
    """Fingerprint of the manifest whose rows are all in the table."""


@dataclass(frozen=True)
class Outcome:
    """What a stage wrote."""

    rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    """Histogram of image statuses."""
    facts: Facts = field(default_factory=Facts)
    """What the stage leaves for later ones."""
    note: str = ""
    """The end of its line in the log."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: adding one is adding a file with a `STAGE` to this package's `stages`, and a word to the list there."""

    name: str
    folder: str
    """Folder below the output; stages that write the same kind of table share one."""
    keeps: Keeps
    recipe: Callable[[RunContext], Recipe | None]
    """What the result depends on; None if the run has no use for the stage. The steps of the stages before are in the context's plan."""
    run: Callable[[RunContext, Step], Outcome]
    help: str | None = None
    """One line for the command of this name; None: it is done by other commands only."""
    facts: type[Facts] = Facts
    """Class of what its marker says besides."""
    table: str | None = None
    """Key of its folder among the tables of a result."""
    figures: str | None = None
    """File of the figures that a command prints."""
    page: str | None = None
    """File of the HTML page that it writes."""
    switch: str | None = None
    """Field of the configuration that has to be true for this stage."""
    judged: Callable[[RunContext, Marker], Marker] | None = None
    """The marker of a finished result under today's configuration, where that can change it."""
    after: Callable[[RunContext], None] | None = None
    """What is checked whenever the stage has run or was skipped."""
