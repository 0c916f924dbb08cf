"""`raycluster status`: what of a run is done, what is left, and what failed."""

from __future__ import annotations

import logging
from typing import Any

from raycluster.config import StorageConfig
from raycluster.errors import ConfigError
from raycluster.run_folder import FIGURES, RunFolder, parts
from raycluster.storage import locate

log = logging.getLogger(__name__)


def status(output: str, storage: StorageConfig) -> dict[str, Any]:
    """What the markers of a run folder say; reads no table, starts nothing. Raises :class:`ConfigError` if none is there."""
    folder = RunFolder(locate(output, storage))
    markers = {stage: folder.marker(stage) for stage in folder.plan()}
    if not any(markers.values()):
        raise ConfigError(f"{folder.root.uri}: no stage of a run was finished here; give the `output` of a run")
    stages: dict[str, dict[str, Any]] = {}
    for stage, marker in markers.items():
        if marker is None:
            stages[stage] = {"state": "left", "rows": None, "seconds": 0.0}
            log.info("%-9s left", stage)
            continue
        stages[stage] = {"state": "done", "rows": marker.rows, "seconds": marker.seconds, "finished": marker.finished}
        failed = {name: count for name, count in marker.statuses.items() if name != "ok"}
        notes = "".join(f" · {name} {count}" for name, count in sorted(failed.items()))
        log.info("%-9s done   %9d rows  %8.1f s  %s%s", stage, marker.rows, marker.seconds, marker.finished[:16], notes)
        if failed:
            stages[stage]["failed"] = failed
    manifest, train, embed = (markers.get(stage) for stage in ("manifest", "train", "embed"))
    warnings = []
    if manifest and embed and embed.facts["manifest"] != manifest.fingerprint:
        warnings.append("the manifest has rows that are not embedded yet: run again")
    if manifest and train and train.rows < manifest.rows:
        share = 1 - train.rows / manifest.rows
        warnings.append(
            f"the model was trained on {train.rows} of {manifest.rows} images; {share:.1%} it has not seen (`--retrain` trains again)"
        )
    tuned = markers.get("finetune")
    if tuned and tuned.facts["refused"]:
        warnings.append(tuned.facts["refused"])
    for warning in warnings:
        log.info("%s", warning)
    judged, page = markers.get("evaluate") or markers.get("drift"), markers.get("report")
    return {
        "command": "status",
        "status": "ok" if all(markers.values()) else "unfinished",
        "output": folder.root.uri,
        "stages": stages,
        "tables": {
            stage: folder.located(marker).uri
            for stage, marker in markers.items()
            if marker and parts(folder.located(marker))
        },
        "model": folder.located(model).uri if (model := folder.model()) else None,
        "metrics": (folder.located(judged) / FIGURES[judged.stage]).read_json() if judged else {},
        "report": (folder.located(page) / "index.html").uri if page else None,
        "warnings": warnings,
    }
