from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering import kmeans
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


@pytest.mark.parametrize("seed", range(5))
def test_it_ends_where_plain_k_means_ends_from_the_same_seeds(seed: int) -> None:
    x, _ = blobs(noise=0.8)
    starts = spherical_kmeans(x, 6, seed=seed, max_iterations=1, tolerance=0)
    centers = starts.centers.double()
    for _ in range(200):
        labels = [max(range(6), key=lambda j, row=row: float(row @ centers[j])) for row in x.double()]
        members = [[row for row, label in zip(x.double(), labels, strict=True) if label == j] for j in range(6)]
        moved = torch.stack([normalize(torch.stack(rows).sum(dim=0), dim=0) for rows in members])
        if torch.equal(moved, centers):
            break
        centers = moved
    result = spherical_kmeans(x, 6, seed=seed, max_iterations=500, tolerance=0)
    assert result.labels.tolist() == labels
    torch.testing.assert_close(result.centers.double(), centers, rtol=1e-4, atol=1e-6)


def test_centers_without_rows_move_to_the_rows_that_fit_worst() -> None:
    x = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.9], [0.0, 1.0]]), dim=1)
    labels, cosine = torch.tensor([0, 0, 0, 2]), torch.tensor([0.9, 0.8, 0.2, 0.7])
    moved = kmeans._update(x, labels, cosine, 4)
    torch.testing.assert_close(moved[[1, 3]], x[[2, 3]])
    torch.testing.assert_close(moved[0], normalize(x[:3].sum(dim=0), dim=0))


def test_a_run_that_stops_early_says_so_and_fits_its_centers() -> None:
    x, _ = blobs(noise=0.8)
    result = spherical_kmeans(x, 6, seed=0, max_iterations=2, tolerance=0)
    assert (result.converged, result.iterations) == (False, 2)
    cosine, labels = nearest_center(x, result.centers)
    assert torch.equal(result.labels, labels)
    assert result.objective == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_as_many_clusters_as_rows_puts_each_row_alone() -> None:
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    result = spherical_kmeans(x, 9, seed=0)
    assert sorted(result.labels.tolist()) == list(range(9))
    assert result.objective == pytest.approx(1.0)


def test_every_distinct_row_gets_its_own_center_among_many_repeats() -> None:
    distinct = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    result = spherical_kmeans(distinct.repeat_interleave(20, dim=0), 12, seed=0)
    assert torch.bincount(result.labels, minlength=12).tolist() == [20] * 12
    assert len(result.labels.view(12, 20).unique(dim=1)[0]) == 1


def test_seeding_on_a_sample_finds_the_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SEEDING_ROWS_A_CENTER", 8)
    x, truth = blobs(k=5, each=100)
    labels = spherical_kmeans(x, 5, seed=0, restarts=3).labels
    assert all(len(labels[truth == group].unique()) == 1 for group in range(5))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    spherical_kmeans(blobs()[0], 5, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
