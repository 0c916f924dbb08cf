"""The run folder: which stages are finished, for which recipe, where their tables lie, and the gates they pass.

A stage's folder counts only when a marker names it. `_stages/<stage>.json` is the current marker; every marker is also
kept under `_stages/history/`, so that going back to an earlier configuration finds its results again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field

from raycluster.config import Section, validate
from raycluster.errors import ArtifactError, ConfigError, DataQualityError
from raycluster.storage import DRAFT, Location

FOLDERS = {
    "manifest": "manifest",
    "shard": "shards",
    "embed": "embeddings",
    "semantics": "semantics",
    "train": "model",
    "baseline": "assignments",
    "finetune": "model",
    "reembed": "embeddings",
    "assign": "assignments",
    "describe": "clusters",
    "evaluate": "evaluation",
    "report": "report",
    "drift": "drift",
}
"""Every stage in order, and the folder below the output that holds what it writes.

With shards `shard` comes before all reading of pictures. With fine-tuning there are three more: `baseline` assigns with the model of
before, for comparison; `reembed` embeds with the tuned encoder. The last, `drift`, is one of new pictures that are assigned with a
finished model (`raycluster assign --model`); no run has it.
"""


FIGURES = {"evaluate": "metrics.json", "drift": "drift.json"}
"""The file of figures that these stages write; what a command has to say for itself."""
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
    """Wall time of the stage; of a row-incremental stage, summed over its calls."""
    finished: str
    """UTC time, ISO 8601."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What only this stage knows (manifest: lineage, next row id; embed and assign: the manifest they cover; …)."""


class Facts(Section):
    """What the markers of some stages must hold besides; what else they hold is left alone."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ManifestFacts(Facts):
    """Of the manifest."""

    lineage: str
    next_row_id: int


class CoverFacts(Facts):
    """Of a stage whose rows follow the manifest."""

    manifest: str


class TrainFacts(Facts):
    """Of the heads."""

    constants: dict[str, Any]
    training: dict[str, Any]


class FinetuneFacts(Facts):
    """Of fine-tuning."""

    guard: dict[str, float]
    refused: str


FOLLOWS_ROWS = ("shard", "embed", "semantics", "baseline", "reembed", "assign")
"""Stages whose marker says which manifest they cover."""
_FACTS: dict[str, type[Facts]] = {
    "manifest": ManifestFacts,
    "train": TrainFacts,
    "finetune": FinetuneFacts,
    **dict.fromkeys(FOLLOWS_ROWS, CoverFacts),
}


class Plan(Section):
    """Which stages a run consists of."""

    stages: list[str]


@dataclass(frozen=True)
class RunFolder:
    """Everything a run wrote, seen through its markers."""

    root: Location

    def marker(self, stage: str) -> Marker | None:
        """The current marker of `stage`; None if it never finished."""
        return self._read(self.root / "_stages" / f"{stage}.json")

    def find(self, stage: str, fingerprint: str) -> Marker | None:
        """The marker of `stage` under this fingerprint, current or of an earlier configuration."""
        return self._read(self.root / "_stages" / "history" / f"{stage}-{fingerprint}.json")

    def latest_with(self, stage: str, recipe: Mapping[str, Any]) -> Marker | None:
        """The newest marker of `stage` with the same recipe, whatever rows it saw; the current one comes first."""
        current = self.marker(stage)
        if current and current.recipe == recipe:
            return current
        files = (self.root / "_stages" / "history").list(suffix=".json")
        markers = [self._read(file) for file in files if file.name.startswith(f"{stage}-")]
        same = [marker for marker in markers if marker and marker.recipe == recipe]
        return max(same, key=lambda marker: marker.finished, default=None)

    def model(self) -> Marker | None:
        """The marker of the current model: the fine-tuned one where there is one."""
        trained, tuned = self.marker("train"), self.marker("finetune")
        return tuned if trained and tuned and tuned.recipe.get("train") == trained.fingerprint else trained

    def set_plan(self, stages: Iterable[str]) -> None:
        """Note which stages the run consists of; those of an earlier configuration that it leaves out are no longer current."""
        planned = list(stages)
        (self.root / PLAN).write_json({"stages": planned})
        for stage in FOLDERS:
            if stage not in planned:
                (self.root / "_stages" / f"{stage}.json").delete()

    def plan(self) -> list[str]:
        """The stages of the run, in order."""
        file = self.root / PLAN
        if not file.exists():
            return list(FOLDERS)
        plan: Plan = _checked(file, file.read_json(), Plan)
        return plan.stages

    def folder(self, stage: str, fingerprint: str) -> Location:
        """Where `stage` writes under this fingerprint."""
        return self.root / relative_path(stage, fingerprint)

    def located(self, marker: Marker) -> Location:
        """The folder that a marker names."""
        return self.root / marker.path

    def parts(self, marker: Marker) -> list[Location]:
        """The Parquet files of a finished table."""
        files = parts(self.located(marker))
        if not files and marker.rows:
            raise ArtifactError(
                f"{self.located(marker).uri}: the {marker.stage} marker promises {marker.rows} rows, but no file is there; "
                f"restore the folder, or delete {self.root.uri}/_stages to run everything again"
            )
        return files

    def finish(self, marker: Marker) -> None:
        """Make a stage's result exist. History first: the current marker is what readers follow."""
        record = marker.model_dump(mode="json")
        (self.root / "_stages" / "history" / f"{marker.stage}-{marker.fingerprint}.json").write_json(record)
        (self.root / "_stages" / f"{marker.stage}.json").write_json(record)

    def remove_drafts(self) -> None:
        """What a killed or ended process has left half-written; call it while no other writes here. (In a bucket there is none.)"""
        if self.root.scheme != "file":
            return
        for name in ("_stages", *FOLDERS.values()):
            for file in (self.root / name).list(suffix=DRAFT, recursive=True):
                file.delete()

    def _read(self, file: Location) -> Marker | None:
        if not file.exists():
            return None
        marker: Marker = _checked(file, file.read_json(), Marker)
        _checked(file, marker.facts, _FACTS.get(marker.stage, Facts))
        return marker


def _checked(file: Location, data: Any, kind: type[Section]) -> Any:
    """What a file of `_stages` holds. Raises :class:`ArtifactError` if that is not what this version writes."""
    try:
        return validate(data, kind, "its keys")
    except ConfigError as error:
        raise ArtifactError(f"{file.uri} is damaged ({error}); restore it, or delete it and run again") from None


def relative_path(stage: str, fingerprint: str) -> str:
    """Path of a stage's folder below the run folder."""
    return f"{FOLDERS[stage]}/{fingerprint}"


def now() -> str:
    """UTC time as ISO 8601, to the microsecond so that markers sort by it."""
    return datetime.now(UTC).isoformat()


def parts(folder: Location) -> list[Location]:
    """The part files of a table's folder, finished or not."""
    return [file for file in folder.list(suffix=".parquet") if file.name.startswith("part-")]


def part_name(row_ids: pa.ChunkedArray | pa.Array | np.ndarray) -> str:
    """File name for a block: its smallest row id.

    A row lies in one file only, so the name is free, and a block that Ray computes twice replaces itself.
    """
    return f"part-{int(np.min(np.asarray(row_ids))):012d}.parquet"


def check_rows(table: str, found: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    """The count gate: every expected row is there, and no row twice; with `exact` no other row either.

    Raises :class:`DataQualityError` with counts and examples.
    """
    unique, counts = np.unique(found, return_counts=True)
    doubled = unique[counts > 1]
    missing = np.setdiff1d(expected, unique, assume_unique=True)
    foreign = np.setdiff1d(unique, expected, assume_unique=True) if exact else missing[:0]
    problems = [
        f"{len(ids)} rows {what} (row_id {', '.join(map(str, ids[:3]))})"
        for what, ids in (("missing", missing), ("twice", doubled), ("not in the manifest", foreign))
        if len(ids)
    ]
    if problems:
        raise DataQualityError(
            f"{table}: {'; '.join(problems)}, of {len(expected)} expected; "
            "nothing was marked finished: delete the folder of this table and run again"
        )


def check_failures(
    statuses: Mapping[str, int],
    examples: Mapping[str, list[tuple[str, str]]],
    allowed: float,
    total: int | None = None,
) -> None:
    """The failure gate: raises :class:`DataQualityError` when too many images could not be read, or all.

    `examples`: for each status, up to three pairs (uri, reason); `total`: images there are, if not all were tried yet.
    """
    tried, failed = sum(statuses.values()), sum(n for status, n in statuses.items() if status != "ok")
    total = tried if total is None else total
    if failed <= allowed * total and failed < total:
        return
    lines = [
        f"  {status}: {n}" + "".join(f"\n    {uri}: {reason}" for uri, reason in examples.get(status, []))
        for status, n in sorted(statuses.items(), key=lambda item: -item[1])
        if status != "ok"
    ]
    stopped = f", and {total - tried} were not tried any more" if tried < total else ""
    raise DataQualityError(
        f"{failed} of {total} images ({failed / total:.1%}) could not be read{stopped}; max_failed_fraction allows {allowed:.1%}. "
        "Mend or remove them, or raise max_failed_fraction; what was read is kept.\n" + "\n".join(lines)
    )
