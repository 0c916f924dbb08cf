"""Test Ward's method against scipy's, its weights against repeated rows, and the k-means that starts from its result."""

from __future__ import annotations

import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering import ward as module
from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.ward import ward, ward_kmeans


def rows(n: int, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [2, 7, 39])
def test_equal_weights_are_scipys_ward(k: int) -> None:
    x = rows(40)
    # `fcluster` is not used, because before SciPy 1.14 it may give fewer clusters than it is asked for.
    expected = cut_tree(linkage(x.double().numpy(), "ward"), k).ravel()
    found = ward(x, torch.ones(40), k)
    assert adjusted_rand_score(expected, found) == pytest.approx(1)
    assert set(found.tolist()) == set(range(k))


def test_a_weight_is_a_repeated_row() -> None:
    x, counts = rows(25), torch.randint(1, 6, (25,), generator=torch.Generator().manual_seed(1))
    repeated = fcluster(linkage(x.repeat_interleave(counts, 0).double().numpy(), "ward"), 6, "maxclust")
    found = ward(x, counts, 6).repeat_interleave(counts)
    assert adjusted_rand_score(repeated, found) == pytest.approx(1)


def test_no_more_means_than_clusters_stay_apart() -> None:
    assert ward(rows(4), torch.ones(4), 6).tolist() == [0, 1, 2, 3]


def groups(sizes: list[int], spread: float = 0.25) -> tuple[Tensor, Tensor]:
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return normalize(rows(len(sizes), 16)[group] + spread * rows(len(group), 16, seed=1), dim=1), group


def test_it_finds_groups_that_one_seeding_misses() -> None:
    x, group = groups([60] * 30, spread=0.7)
    scores = [adjusted_rand_score(group, ward_kmeans(x, 30, seed=seed)[0]) for seed in range(5)]
    single = [adjusted_rand_score(group, kmeans(x, 30, seed=seed).labels) for seed in range(5)]
    assert sum(scores) >= sum(single)
    assert min(scores) > 0.9


@pytest.mark.parametrize(("n", "k"), [(7, 6), (6, 6), (20, 6), (9, 2)])
def test_few_rows_a_cluster(n: int, k: int) -> None:
    labels, fine = ward_kmeans(normalize(rows(n), dim=1), k, seed=0)
    assert len(labels) == len(fine) == n
    assert len(labels.unique()) == k


def test_so_many_clusters_that_nothing_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CENTERS", 10)
    x, group = groups([40] * 12)
    assert adjusted_rand_score(group, ward_kmeans(x, 12, seed=0)[0]) > 0.8


def test_the_seed_decides() -> None:
    x, _ = groups([30, 90, 10, 50], spread=0.9)
    first, again = (ward_kmeans(x, 4, seed=3) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_few_rows_a_center_and_two_levels_find_the_same_groups() -> None:
    x, group = groups([120] * 20, spread=0.5)
    for limits in ({}, {"fine_rows": 4}, {"last_rows": 8}, {"split_above": 50}):
        labels, fine = ward_kmeans(x, 20, seed=0, **limits)
        assert adjusted_rand_score(group, labels) > 0.95
        assert 40 < len(fine.unique()) <= 100


def test_copies_of_fewer_rows_than_clusters() -> None:
    x = normalize(rows(3), dim=1).repeat(40, 1)
    for split_above in (1000, 1):
        labels, _ = ward_kmeans(x, 9, seed=0, split_above=split_above)
        assert len(labels.unique()) == 3
        assert int(labels.max()) < 9
