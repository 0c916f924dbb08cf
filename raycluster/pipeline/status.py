"""`raycluster status`: which stages of a run are done, which are left, and what failed."""

from __future__ import annotations

import logging
from typing import Any

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.pipeline.stage import Covers
from raycluster.pipeline.stages import FACTS, NEW_PICTURES, RUN
from raycluster.pipeline.stages.finetune import FinetuneFacts
from raycluster.storage.location import locate
from raycluster.tables.files import part_files
from raycluster.tables.markers import RunFolder

log = logging.getLogger(__name__)


def status(output: str, storage: StorageConfig) -> dict[str, Any]:
    """Return what the markers of a run folder say. Reads no table and starts nothing. Raises :class:`ConfigError` if there is no marker."""
    folder = RunFolder(locate(output, storage), FACTS)
    known = {stage.name: stage for stage in (*NEW_PICTURES, *RUN)}
    markers = {name: folder.marker(name) for name in folder.plan().stages or known}
    if not any(markers.values()):
        raise ConfigError(f"{folder.root.uri}: no stage of a run was finished here; give the `output` of a run")
    stages: dict[str, dict[str, Any]] = {}
    for stage, marker in markers.items():
        if marker is None:
            stages[stage] = {"state": "left", "rows": None, "seconds": 0.0}
            log.info("%-9s not done yet", stage)
            continue
        stages[stage] = {"state": "done", "rows": marker.rows, "seconds": marker.seconds, "finished": marker.finished}
        failed = {name: count for name, count in marker.statuses.items() if name != "ok"}
        notes = "".join(f" · {name} {count}" for name, count in sorted(failed.items()))
        log.info("%-9s done   %9d rows  %8.1f s  %s%s", stage, marker.rows, marker.seconds, marker.finished[:16], notes)
        if failed:
            stages[stage]["failed"] = failed
    manifest, train, embed = (markers.get(stage) for stage in ("manifest", "train", "embed"))
    warnings = []
    if manifest and embed and embed.typed(Covers).manifest != manifest.fingerprint:
        warnings.append("the manifest has rows that are not embedded yet; run again")
    if manifest and train and train.rows < manifest.rows:
        share = 1 - train.rows / manifest.rows
        warnings.append(
            f"the model was trained on {train.rows} of {manifest.rows} images and has not seen the other {share:.1%} (`--retrain` trains it again)"
        )
    tuned = markers.get("finetune")
    if tuned and (refused := tuned.typed(FinetuneFacts).refused):
        warnings.append(refused)
    for warning in warnings:
        log.info("%s", warning)
    figures: dict[str, Any] = {}
    report = None
    for name, marker in markers.items():
        kind = known.get(name)
        if kind and marker and kind.figures:
            figures = (folder.located(marker) / kind.figures).read_json()
        if kind and marker and kind.page:
            report = (folder.located(marker) / kind.page).uri
    return {
        "command": "status",
        "status": "ok" if all(markers.values()) else "unfinished",
        "output": folder.root.uri,
        "stages": stages,
        "tables": {
            stage: folder.located(marker).uri
            for stage, marker in markers.items()
            if marker and part_files(folder.located(marker))
        },
        "model": folder.located(model).uri if (model := folder.model()) else None,
        "metrics": figures,
        "report": report,
        "warnings": warnings,
    }
