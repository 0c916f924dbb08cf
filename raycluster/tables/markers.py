"""The run folder: which stages are finished, for which recipe, and where their tables lie.

A stage's folder counts only when a marker names it. `_stages/<stage>.json` is the current marker; every marker is also
kept under `_stages/history/`, so that going back to an earlier configuration finds its results again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ConfigDict, Field

from raycluster.errors import ArtifactError, ConfigError
from raycluster.section import Section, SectionOf, validate
from raycluster.storage.location import DRAFT, Location, delete_files, parse_json
from raycluster.tables.files import part_files

FactsOf = TypeVar("FactsOf", bound="Facts")

MODEL_FOLDER = "model"
"""Folder below the output that holds the models."""
PLAN = "_stages/plan.json"


class Marker(Section):
    """Record of a finished stage, written after everything it describes."""

    stage: str
    fingerprint: str
    """Name of the folder; a hash of the recipe and of the upstream fingerprints."""
    path: str
    """Folder of the table, relative to the run folder."""
    recipe: dict[str, Any]
    """The part of the configuration (and upstream fingerprints) that the stage depends on, without the row set."""
    rows: int
    statuses: dict[str, int] = Field(default_factory=dict)
    """Histogram of image statuses."""
    seconds: float
    """Wall time of the stage; for a stage that continues with added rows, summed over its calls."""
    finished: str
    """UTC time, ISO 8601."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What only this stage knows.

    A stage that continues with added rows also records `manifest`, the fingerprint of the manifest that it covers.
    """

    def typed(self, kind: type[FactsOf]) -> FactsOf:
        """Return the facts as `kind`, the class of their stage. Raises :class:`ArtifactError` if one is missing or invalid."""
        try:
            return validate(self.facts, kind, "its facts")
        except ConfigError as error:
            raise ArtifactError(
                f"_stages/{self.stage}.json is damaged ({error}); restore it, or delete it and run again"
            ) from None


class Facts(Section):
    """Facts that only one stage records about its result. Each stage has its own class; keys that the class does not name are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Plan(Section):
    """The stages that a run consists of."""

    stages: list[str]
    paths: dict[str, str] | None = None
    """Folder of each stage's result, relative to the run folder, finished or not; None in plans of earlier versions."""


@dataclass(frozen=True)
class RunFolder:
    """Everything that a run wrote, found through its markers."""

    root: Location
    facts: Mapping[str, type[Facts]] = field(default_factory=dict)
    """Class of the facts of each stage; the markers of other stages may hold anything there."""

    def marker(self, stage: str) -> Marker | None:
        """Return the current marker of `stage`; None if it never finished."""
        return self._read(self._current_file(stage))

    def find(self, stage: str, fingerprint: str) -> Marker | None:
        """Return the marker of `stage` with this fingerprint, the current one or one of an earlier configuration."""
        return self._read(self._history_file(stage, fingerprint))

    def latest_with(self, stage: str, recipe: Mapping[str, Any]) -> Marker | None:
        """Return the newest marker of `stage` with the same recipe, whatever rows it saw. The current marker is preferred."""
        current = self.marker(stage)
        if current and current.recipe == recipe:
            return current
        same = [marker for marker in self.history(f"{stage}-") if marker.recipe == recipe]
        return max(same, key=lambda marker: marker.finished, default=None)

    def model(self) -> Marker | None:
        """Return the marker of the current model, which is the fine-tuned one if there is one."""
        trained, tuned = self.marker("train"), self.marker("finetune")
        return tuned if trained and tuned and tuned.recipe.get("train") == trained.fingerprint else trained

    def set_plan(self, paths: Mapping[str, str]) -> None:
        """Record which stages the run consists of, in order, and the folders that they write, relative to the run folder.

        Stages of an earlier configuration that it leaves out are no longer current.
        """
        (self.root / PLAN).write_json(Plan(stages=list(paths), paths=dict(paths)).model_dump())
        files = (self.root / "_stages").list(suffix=".json")
        delete_files([file for file in files if file.name.removesuffix(".json") not in (*paths, "plan")])

    def plan(self) -> Plan:
        """Return what the run consists of; no stages if no run was planned here."""
        return _read(self.root / PLAN, Plan) or Plan(stages=[], paths={})

    def current(self) -> dict[str, Marker]:
        """Return the current markers by the names of their stages, with those of stages that this version does not know."""
        files = [file for file in (self.root / "_stages").list(suffix=".json") if file.name != "plan.json"]
        return {marker.stage: marker for marker in self._read_all(files)}

    def history(self, prefix: str = "") -> list[Marker]:
        """Return the markers of finished results, current or not, whose files have names with this prefix, `<stage>-<fingerprint>`."""
        files = (self.root / "_stages" / "history").list(suffix=".json")
        return self._read_all([file for file in files if file.name.startswith(prefix)])

    def forget(self, marker: Marker) -> None:
        """Delete a marker, from the history too. Readers follow the current marker, so that one goes first."""
        current = self.marker(marker.stage)
        if current is not None and current.fingerprint == marker.fingerprint:
            self._current_file(marker.stage).delete()
        self._history_file(marker.stage, marker.fingerprint).delete()

    def located(self, marker: Marker) -> Location:
        """Return the folder that a marker names."""
        return self.root / marker.path

    def part_files(self, marker: Marker) -> list[Location]:
        """Return the Parquet files of a finished table."""
        files = part_files(self.located(marker))
        if not files and marker.rows:
            raise ArtifactError(
                f"{self.located(marker).uri}: the marker of the stage {marker.stage} records {marker.rows} rows, but no file is there; "
                f"restore the folder, or delete {self.root.uri}/_stages and run again"
            )
        return files

    def finish(self, marker: Marker) -> None:
        """Publish a stage's result. The history is written first, because readers follow the current marker."""
        record = marker.model_dump(mode="json")
        self._history_file(marker.stage, marker.fingerprint).write_json(record)
        self._current_file(marker.stage).write_json(record)

    def remove_drafts(self, folders: Iterable[str]) -> None:
        """Delete files that a killed or ended process has left half-written in these folders. Call it while no other process writes here.

        In a bucket this does nothing, because no file there is ever half-written.
        """
        if self.root.scheme != "file":
            return
        for name in ("_stages", *folders):
            delete_files((self.root / name).list(suffix=DRAFT, recursive=True))

    def _current_file(self, stage: str) -> Location:
        return self.root / "_stages" / f"{stage}.json"

    def _history_file(self, stage: str, fingerprint: str) -> Location:
        return self.root / "_stages" / "history" / f"{stage}-{fingerprint}.json"

    def _read_all(self, files: Iterable[Location]) -> list[Marker]:
        return [marker for file in files if (marker := self._read(file)) is not None]

    def _read(self, file: Location) -> Marker | None:
        marker = _read(file, Marker)
        if marker is not None:
            _checked(file, marker.facts, self.facts.get(marker.stage, Facts))
        return marker


def _read(file: Location, kind: type[SectionOf]) -> SectionOf | None:
    """Return the content of a file of `_stages`; None if there is none."""
    content = file.read_if_there()
    return None if content is None else _checked(file, parse_json(content, file), kind)


def _checked(file: Location, data: Any, kind: type[SectionOf]) -> SectionOf:
    """Return the content of a file of `_stages`. Raises :class:`ArtifactError` if it is not what this version writes."""
    try:
        return validate(data, kind, "its keys")
    except ConfigError as error:
        raise ArtifactError(f"{file.uri} is damaged ({error}); restore it, or delete it and run again") from None


def now() -> str:
    """Return the UTC time as ISO 8601, to the microsecond so that markers sort by it."""
    return datetime.now(UTC).isoformat()
