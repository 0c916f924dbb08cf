"""Build the data of the report from a run's tables and the addresses of its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycluster.config import RunConfig
from raycluster.results.report.data import ClusterCard, Thumb, Tuning


def cards(clusters: pa.Table, pictures: Mapping[int, str]) -> tuple[ClusterCard, ...]:
    """Return a card for each row of the clusters table.

    `pictures`: row id → address of the picture. For a picture without one the page shows only the name.
    """

    def thumbs(images: list[dict[str, Any]]) -> tuple[Thumb, ...]:
        return tuple(Thumb(image["image_id"], image["confidence"], pictures.get(image["row_id"])) for image in images)

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


def fewer(clusters: pa.Table, typical: int, least_typical: int) -> pa.Table:
    """Return the clusters table with at most so many images of each cluster."""
    for name, most in (("exemplars", typical), ("least_typical", least_typical)):
        place = clusters.schema.get_field_index(name)
        clusters = clusters.set_column(place, name, pc.list_slice(clusters.column(name), 0, most))
    return clusters


def shown(clusters: pa.Table) -> np.ndarray:
    """Return the row ids of the images that the cards show, int64, ascending."""
    lists = [clusters.column(name).combine_chunks().flatten() for name in ("exemplars", "least_typical")]
    return np.unique(np.concatenate([images.field("row_id").to_numpy() for images in lists]))


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
