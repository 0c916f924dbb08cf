"""Fixtures for the tests of the report: the data of a report, and a function that opens a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from raycluster.results.report.data import ClusterCard, ReportData, Thumb, data_uri
from raycluster.results.report.thumbnails import thumbnail

METRICS = {
    "acc": 0.8312, "nmi": 0.879, "ari": 0.741, "n_rows": 0, "n_labelled": 90, "neighborhood_consistency": 0.913,
    "confidence": 0.872, "imbalance": 0.021, "neighborhood_imbalance": 0.781, "margin": 0.804, "silhouette": -0.091,
    "image_text_agreement": 0.813,
}  # fmt: skip


def photograph(seed: int, side: int = 96) -> bytes:
    """A thumbnail with about as many bytes as that of a photograph: smooth shapes with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((300, 240), Image.Resampling.BICUBIC)
    grainy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 30, (240, 300, 3)), 0, 255).astype(np.uint8)
    return thumbnail(Image.fromarray(grainy), side)


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ReportData]:
    """Report data of `clusters` clusters; `changes` replace whole fields."""
    pictures = [data_uri(photograph(seed)) for seed in range(40)]

    def make(clusters: int = 5, pixels: bool = True, **changes: object) -> ReportData:
        def thumb(cluster: int, place: int) -> Thumb:
            src = pictures[(7 * cluster + place) % len(pictures)] if pixels else None
            return Thumb(f"kind-{cluster}/image-{place:02d}.jpg", 0.99 - 0.02 * place, src)

        cards = tuple(
            ClusterCard(c, f"noun-{c}", (f"noun-{c}", f"other-{c}"), 20 + (13 * c) % 97, 0.5 + (7 * c) % 10 / 20,
                 tuple(thumb(c, i) for i in range(12)), tuple(thumb(c, i) for i in range(17, 11, -1)))
            for c in range(clusters)
        )  # fmt: skip
        assigned = sum(card.size for card in cards)
        rng = np.random.default_rng(0)
        map_clusters = rng.integers(0, clusters, 400)
        data = ReportData(
            title="/data/runs/pictures",
            created="2026-11-21T05:53:12+00:00",
            facts={"Method": "dxmc (default): steps 400", "images": "/data/pictures", "ray": "2.60.0"},
            statuses={"ok": assigned, "undecodable": 4, "missing": 2},
            failures={"undecodable": [(f"/data/pictures/broken-{i}.jpg", f"reason {i}") for i in range(4)]},
            n_images=assigned + 6,
            cards=cards,
            metrics=dict(METRICS),
            fit="",
            advice="text helps: the nouns explain the images (asymmetry 1.52)",
            training=[{"loss": 5 / (1 + e), "cluster_contrast": 3 / (1 + e) - 1, "entropy": 2.0} for e in range(40)],
            tuning=None,
            stages={"manifest": 0.2, "embed": 75.0, "train": 150.0},
            map_points=rng.normal(size=(400, 2)) + 9 * rng.normal(size=(clusters, 2))[map_clusters],
            map_clusters=map_clusters,
            warnings=["6 images could not be read"],
        )
        return replace(data, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def opened() -> Callable[[bytes], Image.Image]:
    return lambda data: Image.open(io.BytesIO(data))
