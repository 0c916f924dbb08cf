from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycluster.clustering.scores import label_free_scores, size_imbalance, supervised_scores


@pytest.mark.parametrize("case", [0, 1])
def test_scores_are_the_authors(case: int) -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "metrics.npz", allow_pickle=False) as g:
        scores = supervised_scores(g[f"y{case}"].tolist(), g[f"pred{case}"])
        for name in ("acc", "nmi", "ari"):
            assert scores[name] == pytest.approx(float(g[f"{name}{case}"]), rel=1e-9)


def test_only_labelled_rows_count() -> None:
    scores = supervised_scores(["a", None, "b", "b", None], np.array([3, 0, 1, 1, 1]))
    assert scores == {"acc": 1.0, "nmi": pytest.approx(1.0), "ari": 1.0, "n_labelled": 3}
    assert supervised_scores([None, None], np.array([0, 1])) == {"acc": None, "nmi": None, "ari": None, "n_labelled": 0}


def test_more_clusters_than_classes_leave_rows_unmatched() -> None:
    assert supervised_scores(["a", "a", "b", "b"], np.array([0, 1, 2, 2]))["acc"] == 0.75


def free(images: np.ndarray, clusters: np.ndarray, n_clusters: int) -> dict[str, float | None]:
    half = np.full(len(images), 0.5)
    return label_free_scores(images, images, clusters, half, half / 2, n_clusters)


def test_separate_groups_score_high_and_mixed_ones_low() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(rng.normal(size=(4, 8)), 30, axis=0) + 0.05 * rng.normal(size=(120, 8))
    right, wrong = np.repeat(np.arange(4), 30), np.tile(np.arange(4), 30)
    good, bad = free(images, right, 4), free(images, wrong, 4)
    assert good["neighborhood_consistency"] == 1.0
    assert good["silhouette"] > 0.9
    assert good["image_text_agreement"] == 1.0
    assert good["imbalance"] == pytest.approx(0, abs=1e-9)
    assert (good["confidence"], good["margin"]) == (0.5, 0.25)
    assert bad["neighborhood_consistency"] < 0.4
    assert bad["silhouette"] < 0.2


def test_degenerate_assignments_are_defined() -> None:
    rng = np.random.default_rng(1)
    one = free(rng.normal(size=(40, 4)), np.zeros(40, int), 3)
    assert one["imbalance"] == 1.0
    assert one["silhouette"] is None
    same = free(np.ones((40, 4)), np.arange(40) % 2, 2)
    assert all(value is None or np.isfinite(value) for value in same.values())
    assert (
        label_free_scores(np.ones((5, 2)), None, np.zeros(5, int), np.ones(5), np.ones(5), 2)["image_text_agreement"]
        is None
    )


def test_size_imbalance_by_hand() -> None:
    assert size_imbalance(np.array([1, 3])) == pytest.approx(1 - (0.25 * np.log(4) + 0.75 * np.log(4 / 3)) / np.log(2))
