"""What the clusters of the model in use look like: names, sizes, and their typical images."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from raycluster.config import StorageConfig
from raycluster.images.decode import Rejected, decode
from raycluster.images.fetch import fetch
from raycluster.model import Model
from raycluster.report.thumbnails import thumbnail
from raycluster.run_folder import RunFolder
from raycluster.storage import read_table

EXEMPLARS = 12
THUMBNAIL = 128
"""Longest side in pixels."""


@dataclass(frozen=True)
class Gallery:
    """The clusters of one model."""

    clusters: list[dict[str, Any]]
    """`{cluster, name, nouns, size, mean_confidence, exemplars: [{image_id, uri, confidence}]}`, by number."""
    described: bool
    """False until the run has described its clusters: sizes and means are null and there are no exemplars."""


def read_gallery(model: Model) -> Gallery:
    """The clusters table of the run that the model lies in, if it was made with this model; else the names the model brings itself."""
    # A model folder is `<run>/model/<fingerprint>`; elsewhere there are no markers.
    rows = _described(RunFolder(model.folder.parent.parent), model)
    if rows is not None:
        return Gallery(rows, True)
    plain: dict[str, Any] = {"size": None, "mean_confidence": None, "exemplars": []}
    return Gallery([{"cluster": i, **cluster, **plain} for i, cluster in enumerate(model.clusters)], False)


def _described(run: RunFolder, model: Model) -> list[dict[str, Any]] | None:
    assigned, described = run.marker("assign"), run.marker("describe")
    if assigned is None or described is None or described.recipe.get("assign") != assigned.fingerprint:
        return None
    # A run that went on since may have tables of another model.
    if assigned.recipe.get("model") != model.folder.name:
        return None
    rows = read_table(run.parts(described)).sort_by("cluster").to_pylist()
    wanted = ("image_id", "uri", "confidence")
    for row in rows:
        row["exemplars"] = [{key: image[key] for key in wanted} for image in row["exemplars"][:EXEMPLARS]]
        del row["least_typical"]
    return rows


def picture(uri: str, storage: StorageConfig, max_bytes: int, max_pixels: int) -> str | None:
    """A small JPEG of the picture at `uri` as a `data:` URI; None if it cannot be read (any more)."""
    fetched = fetch(uri, storage, max_bytes)
    if fetched.data is None:
        return None
    try:
        jpeg = thumbnail(decode(fetched.data, max_pixels, min_side=THUMBNAIL).image, THUMBNAIL)
    except Rejected:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
