"""The description of the clusters of the model in use: names, sizes and typical images."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from raycluster.config import StorageConfig
from raycluster.images.decode import Rejected, decode
from raycluster.images.fetch import fetch
from raycluster.model.model import Model
from raycluster.results.report.thumbnails import thumbnail
from raycluster.storage.location import read_table
from raycluster.tables.markers import RunFolder

EXEMPLARS = 12
"""Maximum number of exemplars shown for a cluster."""
THUMBNAIL = 128
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Gallery:
    """The clusters of one model."""

    clusters: list[dict[str, Any]]
    """`{cluster, name, nouns, size, mean_confidence, exemplars: [{image_id, uri, confidence}]}`, sorted by number."""
    described: bool
    """False until the run has described its clusters; until then sizes and means are None and there are no exemplars."""


def read_gallery(model: Model) -> Gallery:
    """Return the clusters of a model, as the run that holds the model describes them.

    If the run's clusters table is missing or was made with another model, only the names that the model itself holds are given.
    """
    # A model folder is `<run>/model/<fingerprint>`. A model folder in another place has no run, so no markers are found.
    rows = _described(RunFolder(model.folder.parent.parent), model)
    if rows is not None:
        return Gallery(rows, True)
    plain: dict[str, Any] = {"size": None, "mean_confidence": None, "exemplars": []}
    return Gallery([{"cluster": i, **cluster, **plain} for i, cluster in enumerate(model.clusters)], False)


def _described(run: RunFolder, model: Model) -> list[dict[str, Any]] | None:
    assigned, described = run.marker("assign"), run.marker("describe")
    if assigned is None or described is None or described.recipe.get("assign") != assigned.fingerprint:
        return None
    # If the run has trained another model since, its tables may belong to that one.
    if assigned.recipe.get("model") != model.folder.name:
        return None
    rows = read_table(run.part_files(described)).sort_by("cluster").to_pylist()
    wanted = ("image_id", "uri", "confidence")
    for row in rows:
        row["exemplars"] = [{key: image[key] for key in wanted} for image in row["exemplars"][:EXEMPLARS]]
        del row["least_typical"]
    return rows


def picture(uri: str, storage: StorageConfig, max_bytes: int, max_pixels: int) -> str | None:
    """Return a small JPEG of the picture at `uri` as a `data:` URI; None if the picture cannot be read (any more)."""
    fetched = fetch(uri, storage, max_bytes)
    if fetched.data is None:
        return None
    try:
        jpeg = thumbnail(decode(fetched.data, max_pixels, min_side=THUMBNAIL).image, THUMBNAIL)
    except Rejected:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
