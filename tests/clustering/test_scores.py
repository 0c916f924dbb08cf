"""Test the scores without labels, with plain loops and with examples worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raycluster.clustering.scores import label_free_scores, size_imbalance


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


def plain_scores(images: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Neighborhood scores and silhouette, computed image by image."""
    x = images / np.linalg.norm(images, axis=1, keepdims=True)
    n, used = len(x), sorted(set(clusters.tolist()))
    prototypes = {c: x[clusters == c].sum(axis=0) / np.linalg.norm(x[clusters == c].sum(axis=0)) for c in used}
    same, silhouettes, hits = [], [], np.zeros(n)
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: -(x[i] @ x[j]))[:20]
        same += [clusters[j] == clusters[i] for j in near]
        hits[near] += 1
        a = x[i] @ prototypes[clusters[i]]
        b = max(x[i] @ prototypes[c] for c in used if c != clusters[i])
        silhouettes.append((a - b) / max(abs(1 - a), abs(1 - b)))
    return {
        "neighborhood_consistency": float(np.mean(same)),
        "neighborhood_imbalance": float(np.std(hits) / np.mean(hits)),
        "silhouette": float(np.mean(silhouettes)),
    }


@pytest.mark.parametrize("n_clusters", [4, 6])
def test_label_free_scores_are_those_of_a_plain_loop(n_clusters: int) -> None:
    rng = np.random.default_rng(3)
    images, clusters = 3 * rng.normal(size=(70, 6)), rng.integers(0, 4, 70)
    scores = free(images, clusters, n_clusters)  # with 6, two clusters are empty
    for name, expected in plain_scores(images, clusters).items():
        assert scores[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_image_text_agreement_by_hand() -> None:
    images, half = np.eye(4), np.full(4, 0.5)
    # The prototypes point to (2, 0.1) and, because rows count by direction alone, to about (0.98, 1.2). The third row is
    # nearer to the first one.
    counterparts = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 9.0]])
    clusters = np.array([0, 0, 1, 1])
    scores = label_free_scores(images, counterparts, clusters, half, half, 2)
    assert scores["image_text_agreement"] == 0.75


def test_a_cluster_without_images_takes_part_in_no_score() -> None:
    # The second row has a negative cosine to its own prototype, but the zero prototype of an empty cluster must not be nearer.
    images = np.array([[1.0, 0.0], [-0.6, 0.8], [1.0, 0.2]])
    assert free(images, np.zeros(3, int), 2)["image_text_agreement"] == 1.0


@pytest.mark.parametrize("dim", [4, 7, 16, 512])
def test_identical_images_have_a_silhouette_of_about_zero(dim: int) -> None:
    for seed in range(5):
        images = np.tile(np.random.default_rng(seed).normal(size=dim), (41, 1))
        assert free(images, np.arange(41) % 2, 3)["silhouette"] == pytest.approx(0, abs=1e-2)


def test_a_single_image_has_a_defined_result() -> None:
    scores = free(np.ones((1, 4)), np.zeros(1, int), 2)
    assert scores["neighborhood_consistency"] is None
    assert scores["neighborhood_imbalance"] is None
    assert scores["image_text_agreement"] == 1.0
