from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import nearest_center, spherical_kmeans
from raycluster.errors import ConfigError


def blobs(k: int = 5, each: int = 40, d: int = 16, noise: float = 0.15) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(k, d, generator=generator), dim=1)
    x = centers.repeat_interleave(each, dim=0) + noise * torch.randn(k * each, d, generator=generator)
    return normalize(x, dim=1), torch.arange(k).repeat_interleave(each)


def test_separated_groups_are_found() -> None:
    x, truth = blobs()
    result = spherical_kmeans(x, 5, seed=0, restarts=3)
    assert result.converged
    for group in range(5):
        assert len(result.labels[truth == group].unique()) == 1
    assert len(result.labels.unique()) == 5


def test_the_result_is_a_fixed_point_of_plain_k_means() -> None:
    x, _ = blobs(noise=0.6)
    result = spherical_kmeans(x, 4, seed=1, max_iterations=500, tolerance=0)
    plain = torch.stack([normalize(x[result.labels == j].mean(dim=0), dim=0) for j in range(4)])
    torch.testing.assert_close(result.centers, plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.labels, (x @ plain.T).argmax(dim=1))
    assert result.objective == pytest.approx(float((x * plain[result.labels]).sum(dim=1).mean()), abs=1e-6)


def test_same_seed_same_result() -> None:
    x, _ = blobs(noise=0.6)
    one, two, other = (spherical_kmeans(x, 7, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.labels, other.labels)


def test_more_restarts_are_never_worse() -> None:
    x, _ = blobs(noise=0.8)
    assert spherical_kmeans(x, 9, seed=2, restarts=5).objective >= spherical_kmeans(x, 9, seed=2).objective


def test_more_clusters_than_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs at least 4 images, there are 3"):
        spherical_kmeans(torch.eye(3), 4, seed=0)


def test_identical_rows_have_a_defined_result() -> None:
    result = spherical_kmeans(normalize(torch.ones(10, 4), dim=1), 3, seed=0)
    assert torch.isfinite(result.centers).all()
    assert result.objective == pytest.approx(1.0)


def test_no_cluster_stays_empty_while_rows_differ() -> None:
    x, _ = blobs(k=3, each=4, noise=0.01)
    assert len(spherical_kmeans(x, 12, seed=0).labels.unique()) == 12


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs()
    whole = nearest_center(x, x[:7])
    monkeypatch.setattr("raycluster.clustering.kmeans.CHUNK_BYTES", 4 * 7 * 13)
    parts = nearest_center(x, x[:7])
    assert torch.equal(whole[1], parts[1])
