"""What the report shows."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from markupsafe import Markup

Metrics: TypeAlias = dict[str, float | int | None]


@dataclass(frozen=True)
class Thumb:
    """One exemplar image."""

    image_id: str
    confidence: float | None
    src: str | None
    """Address of the picture: a data URI, or a path relative to the page. None if there are no pixels (ready-made embeddings, a file that
    is gone); the page then shows the id."""


@dataclass(frozen=True)
class ClusterCard:
    """What the page shows of one cluster."""

    cluster: int
    name: str
    nouns: tuple[str, ...]
    size: int
    mean_confidence: float | None
    typical: tuple[Thumb, ...]
    least_typical: tuple[Thumb, ...]


@dataclass(frozen=True)
class Tuning:
    """What fine-tuning the encoder did."""

    summary: str
    """What was trained and with which outcome, in sentences."""
    before: Metrics
    """Metrics of the model before fine-tuning; empty if the tuned encoder was refused."""
    history: list[dict[str, float]]
    """The means of the loss and its terms in each epoch."""


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows."""

    title: str
    created: str
    """Date and time in ISO 8601."""
    facts: dict[str, str]
    """Facts about the run, in the order in which they are shown. The first word of `Method`, if present, is also a key number."""
    statuses: dict[str, int]
    """Number of images by status."""
    failures: dict[str, list[tuple[str, str]]]
    """Status → examples (URI, reason)."""
    n_images: int
    cards: tuple[ClusterCard, ...]
    """One card for each cluster, also for empty ones."""
    metrics: Metrics
    """The content of `metrics.json`."""
    advice: str
    """Whether text helps, in words; empty for methods without text."""
    fit: str
    """How a method that is fitted in one go explains its fit, in sentences; empty for other methods."""
    training: list[dict[str, float]]
    """The means of the loss and its terms in each epoch. With fewer than two epochs there are no curves."""
    tuning: Tuning | None
    """None without fine-tuning."""
    stages: dict[str, float]
    """Seconds by stage, in order."""
    map_points: np.ndarray | None
    """[n, 2] from :func:`raycluster.results.report.projection.project`, or None to leave the map out."""
    map_clusters: np.ndarray | None
    """[n] cluster of each point."""
    warnings: list[str]


def data_uri(jpeg: bytes) -> str:
    """Return a picture as an address that holds it."""
    # Return Markup, because escaping megabytes of base64 would take most of the rendering time.
    return Markup("data:image/jpeg;base64," + base64.b64encode(jpeg).decode())
