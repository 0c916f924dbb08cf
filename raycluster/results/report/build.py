"""Build the data of the report page from a run's tables and thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.config import RunConfig
from raycluster.randomness import sampled
from raycluster.results.report.html import ClusterCard, Thumb, Tuning
from raycluster.results.report.projection import project
from raycluster.storage.location import Location
from raycluster.tables.rows import gather


def cards(clusters: pa.Table, thumbnails: Mapping[int, bytes]) -> tuple[ClusterCard, ...]:
    """Return a card for each row of the clusters table.

    `thumbnails`: row id → JPEG. For a picture without a thumbnail the page shows only the name.
    """

    def thumbs(images: list[dict[str, Any]]) -> tuple[Thumb, ...]:
        return tuple(Thumb(image["image_id"], image["confidence"], thumbnails.get(image["row_id"])) for image in images)

    return tuple(
        ClusterCard(
            row["cluster"],
            row["name"],
            tuple(row["nouns"]),
            row["size"],
            row["mean_confidence"],
            thumbs(row["exemplars"]),
            thumbs(row["least_typical"]),
        )
        for row in clusters.to_pylist()
    )


def shown(clusters: pa.Table) -> np.ndarray:
    """Return the row ids of the images that the cards show, ascending."""
    columns = (clusters.column(name).to_pylist() for name in ("exemplars", "least_typical"))
    return np.array(sorted({image["row_id"] for column in columns for row in column for image in row}), np.int64)


def sample_map(
    embeddings: list[Location], assignments: pa.Table, size: int, seed: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return 2-D coordinates [n, 2] and clusters [n] of a seeded sample of the assigned images; None if the map is left out."""
    rows = assignments.filter(pc.is_valid(assignments.column("cluster"))).sort_by("row_id")
    if size == 0 or not len(rows):
        return None, None
    ids = rows.column("row_id").to_numpy()
    chosen = sampled(ids, size, seed)
    clusters = rows.column("cluster").to_numpy()[np.searchsorted(ids, chosen)]
    return project(gather(embeddings, chosen).astype(np.float32), seed), clusters


def tuning(
    kind: str, refused: str, history: list[dict[str, float]], agreement: float | None, before: dict[str, Any]
) -> Tuning:
    """Return what the page says about fine-tuning.

    `kind`: which weights were trained (`lora`, `last stage`); `refused`: why the result was refused, empty if it was not; `agreement`: the
    share of images that kept their cluster; `before`: the scores before fine-tuning.
    """
    trained = {
        "lora": "Low-rank updates of the query and value projections were trained, and merged into the vision tower.",
        "last stage": "The vision tower has no attention blocks, so its last stage was trained instead of low-rank updates.",
    }[kind]
    if refused:
        return Tuning(f"{trained} {refused[0].upper()}{refused[1:]}.", {}, history)
    kept = "" if agreement is None else f" {agreement:.1%} of the images kept their cluster."
    return Tuning(f"{trained}{kept}", before, history)


def facts(config: RunConfig, method: dict[str, Any], encoder: str, other_files: int) -> dict[str, str]:
    """Return the facts about the run, in words, for the head of the page."""
    given = config.images if config.images is not None else config.embeddings
    sources = given if isinstance(given, str) else " · ".join(given or ())
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("raycluster", "ray", "torch", "open_clip_torch")
    )
    constants = ", ".join(f"{key} {value}" for key, value in method.items())
    return {
        "Images" if config.images is not None else "Embeddings": sources,
        "Files that are no pictures": str(other_files),
        "Encoder": f"{config.encoder.model} {config.encoder.pretrained or ''} ({encoder})"
        if config.images is not None
        else "none: ready-made embeddings",
        "Method": f"{config.method.name} ({config.method.profile}): {constants}",
        "Vocabulary": config.vocabulary.embeddings
        or " ".join(filter(None, (config.vocabulary.source, config.vocabulary.path))),
        "Clusters": str(config.clusters),
        "Seed": str(config.seed),
        "Versions": versions,
    }
