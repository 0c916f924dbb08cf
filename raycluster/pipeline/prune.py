"""`raycluster prune`: delete what no current result of a run folder needs, and all rows of images that the manifest no longer has.

The manifest that is there decides: `raycluster run` or `raycluster manifest` has to list the images first. Markers are deleted before what
they name, and tables are written again as :mod:`raycluster.tables.removal` says. So a run or another prune may follow after a kill at any
moment.

Ray is slow to import, so what uses it is imported in functions: `raycluster --help` must answer at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from raycluster.compute import interrupts
from raycluster.config import StorageConfig
from raycluster.errors import ArtifactError, ConfigError
from raycluster.pipeline.stage import Keeps
from raycluster.pipeline.stages import FACTS
from raycluster.pipeline.stages.manifest import ManifestFacts
from raycluster.pipeline.superseded import FOLDERS, STAGES, find_superseded
from raycluster.storage.location import Location, locate
from raycluster.tables.markers import Marker, RunFolder
from raycluster.tables.removal import Removal, plan_removals, remove_rows
from raycluster.tables.rows import row_ids

log = logging.getLogger(__name__)


@dataclass
class Leftovers:
    """What is to be deleted from a run folder. Paths are relative to it."""

    markers: list[Marker]
    outdated: list[str]
    """Stages whose current results go, because they show images that are gone. The next run makes them again."""
    folders: list[str]
    removals: list[Removal] = field(default_factory=list)
    stale: list[Location] = field(default_factory=list)
    """Files of tables that do not count any more, left over from a process that was killed."""
    rows: dict[str, int] = field(default_factory=dict)
    """Table → number of its rows that go."""
    trained: list[str] = field(default_factory=list)
    """Folders of models that may derive from images that are gone."""


def prune(output: str, storage: StorageConfig, yes: bool = False) -> dict[str, Any]:
    """Find what may be deleted from a run folder, or from an output folder of `assign --model`; with `yes`, delete it.

    Returns `{command, status, output, deleted, folders: {path: {files, bytes}}, rows: {table: number}, redo, warnings}`; `redo` names the
    stages whose current results go. Ray is started only if tables are to be written again. Raises :class:`ConfigError` for a folder
    without a manifest, and :class:`ArtifactError` for a damaged one.
    """
    from raycluster.compute.errors import with_plain_errors

    folder = RunFolder(locate(output, storage), FACTS)
    return with_plain_errors(lambda: _prune(folder) if yes else _say(folder, _find(folder), deleted=False))


def _prune(folder: RunFolder) -> dict[str, Any]:
    from raycluster.pipeline.exclusive import alone, check_writable

    _current(folder)  # a folder that is no run gets no lock
    check_writable(folder)
    with interrupts.noticed(), alone(folder, {stage.folder for stage in STAGES.values()}):
        leftovers = _find(folder)
        result = _say(folder, leftovers, deleted=True)
        _delete(folder, leftovers)
    return result


def _current(folder: RunFolder) -> dict[str, Marker]:
    current = folder.current()
    if "manifest" not in current:
        raise ConfigError(
            f"output: {folder.root.uri} has no finished manifest, which says what images there are; give the `output` of a run, "
            "or run `raycluster manifest` first"
        )
    return current


def _find(folder: RunFolder) -> Leftovers:
    """Look through markers, names of folders and footers of tables."""
    current, history = _current(folder), folder.history()
    found = [f"{name}/{place.name}" for name in FOLDERS for place in (folder.root / name).folders()]
    superseded = find_superseded(current, history, folder.plan().paths, found)
    leftovers = Leftovers(list(superseded.markers), list(superseded.outdated), list(superseded.folders))
    images = _manifest_ids(folder, current["manifest"])
    for path in superseded.tables:
        removals, stale, staying = plan_removals(folder.root / path, images)
        leftovers.stale += stale
        if removals:
            leftovers.rows[path] = sum(len(each.row_ids) for each in removals)
        if removals and not staying and (markers := _of_rows_alone(path, (*current.values(), *history))):
            # A marker must not name a table without files.
            leftovers.markers += markers
            leftovers.folders.append(path)
        else:
            leftovers.removals += removals
    lineage = current["manifest"].typed(ManifestFacts).lineage
    leftovers.trained = [marker.path for marker in current.values() if _has_seen(marker, lineage, bool(leftovers.rows))]
    return leftovers


def _manifest_ids(folder: RunFolder, marker: Marker) -> np.ndarray:
    """Return the row ids of the manifest, ascending. What is missing from a damaged one must not be taken for deleted images."""
    ids = np.sort(row_ids(folder.part_files(marker)))
    if len(ids) != marker.rows:
        raise ArtifactError(
            f"{folder.located(marker).uri}: the marker of the stage manifest records {marker.rows} rows, but {len(ids)} are there; "
            "restore the folder, or run `raycluster manifest` again"
        )
    return ids


def _of_rows_alone(path: str, known: Iterable[Marker]) -> list[Marker]:
    """Return the markers that name a table; none if its folder holds more than rows, such as nouns."""
    markers = [marker for marker in known if marker.path == path]
    kinds = [STAGES.get(marker.stage) for marker in markers]
    return markers if all(kind is not None and kind.keeps is Keeps.ROWS for kind in kinds) else []


def _has_seen(marker: Marker, lineage: str, finds_rows: bool) -> bool:
    """Return whether a stage has trained a model when the manifest had images that are gone.

    Markers of earlier versions do not say so; then the model may have if rows of such images are still there.
    """
    stage = STAGES.get(marker.stage)
    if stage is None or stage.keeps is not Keeps.TRAINED:
        return False
    then = marker.facts.get("lineage")
    return finds_rows if then is None else bool(then != lineage)


def _say(folder: RunFolder, leftovers: Leftovers, deleted: bool) -> dict[str, Any]:
    """Log a line for everything that goes, and return the result."""
    folders = {}
    for path in leftovers.folders:
        sizes = (folder.root / path).sizes()
        folders[path] = {"files": len(sizes), "bytes": sum(sizes)}
        log.info("%-40s %6d files  %10.1f MB", path, len(sizes), sum(sizes) / 1e6)
    for path, count in leftovers.rows.items():
        log.info("%-40s %6d rows of images that are gone", path, count)
    warnings = [
        f"{path} was trained when the manifest had images that are gone: its weights, its choice of nouns and the vectors in "
        "novelty.safetensors may derive from them; `raycluster run --retrain` trains without them, and `raycluster prune` then deletes it"
        for path in dict.fromkeys(leftovers.trained)
    ]
    if leftovers.outdated:
        warnings.append(
            f"the results of {', '.join(leftovers.outdated)} show images that are gone; `raycluster run` makes them again"
        )
    if not deleted and (folders or leftovers.rows or leftovers.markers or leftovers.stale):
        warnings.append("nothing was deleted; give --yes to delete this")
    for warning in warnings:
        log.info("%s", warning)
    return {
        "command": "prune",
        "status": "ok",
        "output": folder.root.uri,
        "deleted": deleted,
        "folders": folders,
        "rows": leftovers.rows,
        "redo": leftovers.outdated,
        "warnings": warnings,
    }


def _delete(folder: RunFolder, leftovers: Leftovers) -> None:
    from raycluster.compute import work

    if leftovers.outdated:
        _forget_in_record(folder, leftovers.outdated)
    steps: list[Callable[[], None]] = [
        *(partial(folder.forget, marker) for marker in leftovers.markers),
        *(partial(_delete_folder, folder.root / path) for path in leftovers.folders),
        *(file.delete for file in leftovers.stale),
    ]
    for step in steps:
        work.check()
        step()
    if leftovers.removals:
        _remove_rows(folder, leftovers.removals)


def _delete_folder(place: Location) -> None:
    """Delete a folder. The JSON files go first: without them, what a kill leaves is no model and no training to resume."""
    for file in place.list(suffix=".json"):
        file.delete()
    place.delete()


def _remove_rows(folder: RunFolder, removals: list[Removal]) -> None:
    """Write the tables again, each file in a task."""
    from raycluster.compute.connect import connect
    from raycluster.compute.tasks import map_tasks
    from raycluster.pipeline.cluster_checks import find_common_output

    connect()
    for _ in map_tasks(remove_rows, removals, common=find_common_output(folder.root)):
        pass


def _forget_in_record(folder: RunFolder, stages: list[str]) -> None:
    """Take the results of these stages out of `run.json`, which says what the last run has written."""
    file = folder.root / "run.json"
    if not file.exists():
        return
    record = file.read_json()
    result = record["result"]
    for name in stages:
        stage = STAGES[name]
        record["stages"].pop(name, None)
        result["stages"].pop(name, None)
        result["tables"].pop(stage.table, None)
        if stage.page is not None:
            result["report"] = None
        if stage.figures is not None:
            result["metrics"] = {}
    file.write_json({**record, "result": {**result, "status": "unfinished"}})
