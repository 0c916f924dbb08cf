"""Gather a run's tables and thumbnails into the data of the report page."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.config import EncoderConfig, ReportConfig, RunConfig, StorageConfig
from raycluster.images.decode import Rejected, decode
from raycluster.images.fetch import fetch
from raycluster.report.page import Card, Thumb, Tuning
from raycluster.report.projection import project
from raycluster.report.thumbnails import thumbnail
from raycluster.rows import gather
from raycluster.storage import Location
from raycluster.training.counted import sampled

THREADS = 16
"""Pictures are few, but each may wait for object storage."""


def cards(
    clusters: pa.Table, report: ReportConfig, encoder: EncoderConfig, storage: StorageConfig, pixels: bool
) -> tuple[Card, ...]:
    """A card for each row of the clusters table. Without `pixels` (ready-made embeddings) thumbnails stay empty."""

    def thumb(image: dict[str, Any]) -> Thumb:
        jpeg = _thumbnail(image["uri"], report.thumbnail, encoder, storage) if pixels else None
        return Thumb(image["image_id"], image["confidence"], jpeg)

    with ThreadPoolExecutor(THREADS) as pool:
        rows = [
            (row, pool.map(thumb, row["exemplars"]), pool.map(thumb, row["least_typical"]))
            for row in clusters.to_pylist()
        ]
        return tuple(
            Card(
                row["cluster"],
                row["name"],
                tuple(row["nouns"]),
                row["size"],
                row["mean_confidence"],
                tuple(most),
                tuple(least),
            )
            for row, most, least in rows
        )


def _thumbnail(uri: str, side: int, encoder: EncoderConfig, storage: StorageConfig) -> bytes | None:
    """None if the picture is gone since it was embedded: the page then shows its name only."""
    fetched = fetch(uri, storage, encoder.max_bytes)
    if fetched.data is None:
        return None
    try:
        return thumbnail(decode(fetched.data, encoder.max_pixels, min_side=side).image, side)
    except Rejected:
        return None


def sample_map(
    embeddings: list[Location], assignments: pa.Table, size: int, seed: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """2-D coordinates [n, 2] and clusters [n] of a seeded sample of the assigned images; None if the map is left out."""
    rows = assignments.filter(pc.is_valid(assignments.column("cluster"))).sort_by("row_id")
    if size == 0 or not len(rows):
        return None, None
    ids = rows.column("row_id").to_numpy()
    chosen = sampled(ids, size, seed)
    clusters = rows.column("cluster").to_numpy()[np.searchsorted(ids, chosen)]
    return project(gather(embeddings, chosen).astype(np.float32), seed), clusters


def tuning(record: dict[str, Any], scores: dict[str, Any]) -> Tuning:
    """What fine-tuning did. `record`, `scores`: facts of the markers of `finetune` and `evaluate`."""
    trained = {
        "lora": "Low-rank updates of the query and value projections were trained, and merged into the vision tower.",
        "last stage": "The vision tower has no attention blocks, so its last stage was trained instead of low-rank updates.",
    }[record["kind"]]
    if record["refused"]:
        came = f"{record['refused'][0].upper()}{record['refused'][1:]}."
        return Tuning(f"{trained} {came}", {}, record["history"])
    return Tuning(
        f"{trained} {scores['agreement']:.1%} of the images kept their cluster.", scores["before"], record["history"]
    )


def facts(config: RunConfig, method: dict[str, Any], encoder: str, other_files: int) -> dict[str, str]:
    """What was run, in words, for the head of the page."""
    given = config.images if config.images is not None else config.embeddings
    sources = given if isinstance(given, str) else " · ".join(given or ())
    versions = ", ".join(
        f"{package} {version(package)}" for package in ("raycluster", "ray", "torch", "open_clip_torch")
    )
    constants = ", ".join(f"{key} {value}" for key, value in method.items())
    return {
        "Images" if config.images is not None else "Embeddings": sources,
        "Other files there": str(other_files),
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
