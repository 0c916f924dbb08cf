"""Which results of a run folder are superseded: no current result was made of them, and no step of the plan goes on with them.

These are pure functions on markers and on the names of folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycluster.pipeline.stage import Keeps, Stage
from raycluster.pipeline.stages import NEW_PICTURES, RUN
from raycluster.pipeline.stages.manifest import ManifestFacts
from raycluster.tables.markers import MODEL_FOLDER, Marker

STAGES: dict[str, Stage] = {stage.name: stage for stage in (*NEW_PICTURES, *RUN)}
TRAINING = "training"
"""Folder of the checkpoints; those in `training/<fingerprint>` are of the model of this fingerprint."""
FOLDERS = (*sorted({stage.folder for stage in STAGES.values()}), TRAINING)
"""Folders below the output in which each result has a folder."""
ROW_FOLDERS = {stage.folder for stage in STAGES.values() if stage.keeps.follows_rows}
"""Those of them whose tables have a row for each image. What is unfinished there is continued by the next run."""
LISTINGS = "manifest/tars"
"""What is kept of listings. It names images, and it can be made again."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Superseded:
    """What may be deleted from a run folder, and what is left then. Paths are relative to the run folder."""

    markers: tuple[Marker, ...]
    """They are to be deleted before the folders."""
    outdated: tuple[str, ...]
    """Stages whose current marker is one of them, because the result shows images that are gone."""
    folders: tuple[str, ...]
    tables: tuple[str, ...]
    """The tables of rows that stay."""


def find_superseded(
    current: Mapping[str, Marker], history: Sequence[Marker], planned: Mapping[str, str] | None, found: Iterable[str]
) -> Superseded:
    """Return what is superseded in a run folder.

    `current`: markers by their stages, with one of the manifest; `history`: all markers; `planned`: the folders that the steps of the last
    plan write, None if they are not known; `found`: folders, as `<one of FOLDERS>/<name>`. Other names than fingerprints are left alone.
    """
    known = {marker.fingerprint: marker for marker in (*history, *current.values())}
    manifest = current["manifest"]
    lineage = manifest.typed(ManifestFacts).lineage
    resumed = [known[name] for path in (planned or {}).values() if (name := _name(path)) in known]
    outdated = {stage: each for stage, each in current.items() if _shows_gone(each, known, lineage)}
    needed = _needed([each for each in (*current.values(), *resumed) if not _shows_gone(each, known, lineage)], known)
    needed = {name for name in needed if known[name].stage != "manifest"} | {manifest.fingerprint}
    markers = [each for each in history if each.fingerprint not in needed and each not in outdated.values()]
    names = sorted(found)
    kept = {path for name in needed for path in _folders(known[name])} | _unfinished(planned, names, known)
    ours = [path for path in names if _FINGERPRINT.fullmatch(_name(path))]
    return Superseded(
        markers=(*outdated.values(), *markers),
        outdated=tuple(outdated),
        folders=tuple(path for path in names if path == LISTINGS or (path in ours and path not in kept)),
        tables=tuple(path for path in ours if path in kept and _kind(path) in ROW_FOLDERS),
    )


def _shows_gone(marker: Marker, known: Mapping[str, Marker], lineage: str) -> bool:
    """Return whether a result that is not continued row by row was made before images were removed, and may therefore show them."""
    stage = STAGES.get(marker.stage)
    if stage is None or stage.keeps is not Keeps.FIXED or marker.stage == "manifest":
        return False
    made_of = [known[name] for name in _mentioned(marker, known)]
    if any(each.recipe.get("lineage", lineage) != lineage or _shows_gone(each, known, lineage) for each in made_of):
        return True
    if "manifest" not in marker.recipe or any("lineage" in each.recipe for each in made_of):
        return False
    listed = known.get(marker.recipe["manifest"])
    return listed is None or listed.typed(ManifestFacts).lineage != lineage


def _needed(current: Iterable[Marker], known: Mapping[str, Marker]) -> set[str]:
    """Return the fingerprints of results, and of all results that they were made of."""
    needed: set[str] = set()
    waiting = list(current)
    while waiting:
        marker = waiting.pop()
        needed.add(marker.fingerprint)
        waiting += [known[name] for name in _mentioned(marker, known) if name not in needed]
    return needed


def _mentioned(marker: Marker, known: Mapping[str, Marker]) -> set[str]:
    """Return the fingerprints of other results in a recipe. The lineage may look like one, but it only tells whether rows were removed."""
    values = {key: value for key, value in marker.recipe.items() if key != "lineage"}
    return {text for text in _texts(values) if text in known and text != marker.fingerprint}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, (list, tuple)):
        yield from (text for each in value for text in _texts(each))


def _folders(marker: Marker) -> Iterable[str]:
    """Return the folders of a result. A refused fine-tuning names the model before, but its own may be accepted under other bounds."""
    yield marker.path
    if marker.stage in STAGES:
        yield f"{STAGES[marker.stage].folder}/{marker.fingerprint}"


def _unfinished(planned: Mapping[str, str] | None, found: Sequence[str], known: Mapping[str, Marker]) -> set[str]:
    """Return the folders without a finished result that the next run goes on with: tables of rows, and trainings."""
    if planned is None:  # the plan of an earlier version
        return {path for path in found if _name(path) not in known and _kind(path) in {*ROW_FOLDERS, TRAINING}}
    unfinished = [path for path in planned.values() if _name(path) not in known]
    trainings = {f"{TRAINING}/{_name(path)}" for path in unfinished if _kind(path) == MODEL_FOLDER}
    return {path for path in unfinished if _kind(path) in ROW_FOLDERS} | trainings


def _kind(path: str) -> str:
    return path.partition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
