"""Test the guard of fine-tuning: what it measures, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from raycluster.config import FinetuneConfig
from raycluster.finetuning.collapse import measure, refusal

CLUSTERS, EACH = 10, 30


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Embeddings of ten tight groups of thirty rows."""
    rng = np.random.default_rng(0)
    centers = np.repeat(rng.normal(size=(CLUSTERS, 32)), EACH, axis=0)
    return (centers + 0.05 * rng.normal(size=centers.shape)).astype(np.float16)


def groups() -> np.ndarray:
    return np.repeat(np.arange(CLUSTERS), EACH)


def judged(embeddings: np.ndarray, after: np.ndarray, **bounds: float) -> str:
    return refusal(measure(embeddings, groups(), after, CLUSTERS), FinetuneConfig(**bounds))  # type: ignore[arg-type]


def test_a_few_changes_pass(embeddings: np.ndarray) -> None:
    after = groups()
    after[::50] = 0
    measures = measure(embeddings, groups(), after, CLUSTERS)
    assert measures["agreement"] == pytest.approx(1 - np.mean(after != groups()))
    assert measures["consistency_before"] == 1
    assert measures["imbalance_before"] == pytest.approx(0)
    assert judged(embeddings, after) == ""


def test_vanished_clusters_are_a_collapse(embeddings: np.ndarray) -> None:
    after = np.minimum(groups(), CLUSTERS - 3)
    reason = judged(embeddings, after, max_added_imbalance=1)
    assert "clusters in use fell from 10 to 8 (finetune.max_lost_clusters 0.1)" in reason
    assert "consistency" not in reason
    assert judged(embeddings, after, max_added_imbalance=1, max_lost_clusters=0.2) == ""


def test_clusters_that_cut_through_groups_are_a_collapse(embeddings: np.ndarray) -> None:
    reason = judged(embeddings, np.arange(CLUSTERS * EACH) % CLUSTERS)
    assert "neighborhood consistency fell from 1.000 to" in reason
    assert "clusters in use" not in reason
    assert "imbalance" not in reason


def test_one_cluster_that_takes_most_is_a_collapse(embeddings: np.ndarray) -> None:
    after = np.where(np.arange(CLUSTERS * EACH) % EACH, 0, groups())
    reason = judged(embeddings, after, max_lost_consistency=1)
    assert "size imbalance grew from 0.000 to" in reason
    assert "clusters in use" not in reason
