"""Test the method `kmeans`: its fit, its probabilities, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from raycluster.clustering.kmeans import kmeans
from raycluster.errors import ConfigError
from raycluster.methods.base import TrainingData
from raycluster.methods.kmeans import KMeansConfig, KMeansMethod


def rows(n: int = 60, d: int = 8) -> TrainingData:
    return TrainingData(torch.arange(n), 9 * torch.randn(n, d, generator=torch.Generator().manual_seed(0)), None)


def fitted(n_clusters: int = 4, seed: int = 0, **constants: float) -> tuple[KMeansMethod, dict[str, float]]:
    method = KMeansMethod(KMeansConfig(name="kmeans", **constants), 8, n_clusters, 60, seed)
    return method, method.fit(rows())


def test_the_fit_is_spherical_k_means_on_normalized_rows() -> None:
    method, report = fitted(restarts=3)
    expected = kmeans(rows().images, 4, seed=0, restarts=3, max_iterations=300)
    assert torch.equal(method.centers, expected.centers)
    assert report == {"mean_cosine": expected.objective, "iterations": float(expected.iterations)}
    assert torch.equal(method.predict(rows().images).argmax(dim=1), expected.labels)


def test_probabilities_are_the_plain_softmax_over_cosines() -> None:
    method, _ = fitted(temperature=0.3)
    for row, found in zip(rows().images[:5], method.predict(rows().images[:5]), strict=True):
        weights = [math.exp(float(row @ center) / float(row.norm()) / 0.3) for center in method.centers]
        assert found.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)


def test_fitting_follows_the_seed() -> None:
    one, two, other = (fitted(6, seed)[0].centers for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_iterations_can_be_limited() -> None:
    assert fitted(max_iterations=1)[1]["iterations"] == 1


def test_more_clusters_than_images_is_an_error() -> None:
    method = KMeansMethod(KMeansConfig(name="kmeans"), 8, 61, 60, seed=0)
    with pytest.raises(
        ConfigError, match="clusters: k-means into 61 clusters needs at least 61 images, but there are 60"
    ):
        method.fit(rows())
