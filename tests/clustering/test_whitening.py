"""Test covariances, whitening and smoothing against plain loops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering import whitening as module
from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.clustering.whitening import (
    class_means,
    neighbor_whitening,
    pair_covariance,
    principal_directions,
    smooth,
    whitening,
    within_covariance,
)


def rows(n: int = 60, dim: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator) * torch.arange(1, dim + 1)
    return x - x.mean(dim=0)


def test_pair_covariance_is_the_mean_over_pairs() -> None:
    x = rows()
    neighbors = nearest_neighbors(x, 5)
    pairs = [(x[i] - x[j]).double() for i in range(len(x)) for j in neighbors[i].tolist()]
    expected = torch.stack([torch.outer(pair, pair) for pair in pairs]).mean(dim=0)
    torch.testing.assert_close(pair_covariance(x, neighbors), expected, rtol=1e-5, atol=1e-5)


def test_pair_covariance_of_some_rows_is_the_mean_over_their_pairs() -> None:
    x, some = rows(), torch.tensor([4, 17, 3])
    neighbors = nearest_neighbors(x, 5)[some]
    pairs = [(x[i] - x[j]).double() for i, near in zip(some, neighbors, strict=True) for j in near.tolist()]
    expected = torch.stack([torch.outer(pair, pair) for pair in pairs]).mean(dim=0)
    torch.testing.assert_close(pair_covariance(x, neighbors, some), expected, rtol=1e-5, atol=1e-5)


def test_sums_in_chunks_are_the_same() -> None:
    x, labels = rows(), torch.arange(60) % 7
    neighbors = nearest_neighbors(x, 5)
    whole = pair_covariance(x, neighbors), within_covariance(x, labels, 7)
    before, module.CHUNK_ROWS = module.CHUNK_ROWS, 16
    try:
        parts = pair_covariance(x, neighbors), within_covariance(x, labels, 7)
    finally:
        module.CHUNK_ROWS = before
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_within_covariance_and_class_means_are_those_of_each_cluster() -> None:
    x, labels = rows(), torch.arange(60) % 4
    means = torch.stack([x[labels == label].mean(dim=0) for label in range(4)])
    torch.testing.assert_close(class_means(x, labels, 5)[:4], means)
    assert class_means(x, labels, 5)[4].abs().max() == 0
    off = (x - means[labels]).double()
    torch.testing.assert_close(within_covariance(x, labels, 5), off.T @ off / 60, rtol=1e-5, atol=1e-5)


def test_whitened_rows_have_equal_variance_in_all_directions() -> None:
    x = rows(5000)
    covariance = x.double().T @ x.double() / len(x)
    white = (x @ whitening(x, covariance, shrinkage=1e-9)).double()
    # They are equal up to the floor, which is a thousandth of the mean variance.
    torch.testing.assert_close(white.T @ white / len(x), torch.eye(6).double(), rtol=0.02, atol=0.02)
    half = (x @ whitening(x, covariance, shrinkage=0.3)).double()
    variances = (half.T @ half / len(x)).diagonal()
    assert 1.5 < variances.max() / variances.min() < 20


def test_rows_without_differences_stay_finite() -> None:
    copies = rows(3).repeat(20, 1)
    neighbors = nearest_neighbors(copies, 4)
    for x in (copies, torch.zeros(60, 6)):
        w = whitening(x, pair_covariance(x, neighbors), 0.3)
        assert torch.isfinite(w).all()
        assert torch.isfinite(normalize(x @ w, dim=1)).all()


def test_smoothing_is_what_its_sentence_says() -> None:
    x = normalize(rows(), dim=1)
    neighbors = nearest_neighbors(x, 3)
    expected = x
    for _ in range(2):
        near = torch.stack([normalize(expected[neighbors[i].long()].sum(dim=0), dim=0) for i in range(len(x))])
        expected = normalize(0.7 * x + 0.3 * near, dim=1)
    torch.testing.assert_close(smooth(x, neighbors, steps=2, share=0.7), expected)
    assert torch.equal(smooth(x, neighbors, steps=0, share=0.7), x)


def test_directions_that_differ_between_neighbors_shrink() -> None:
    # Groups differ in the first three dimensions. Within the groups the last four vary even more.
    group, generator = torch.arange(300) % 3, torch.Generator().manual_seed(2)
    x = 0.1 * torch.randn(300, 8, generator=generator)
    x[torch.arange(300), group] += 1
    x[:, 4:] += 2 * torch.randn(300, 4, generator=generator)
    x = x - x.mean(dim=0)

    def in_group(rows: Tensor) -> float:
        near = nearest_neighbors(rows, 8).long()
        return float((group[near] == group.unsqueeze(1)).double().mean())

    assert in_group(x) < 0.6
    everything = neighbor_whitening(x, 8, 0.01, 3, queries=300, database=300, seed=0)
    assert in_group(x @ everything) > 0.99
    # A part of the rows that asks among another part, for fewer neighbors, gives nearly the same metric.
    some = neighbor_whitening(x, 8, 0.01, 3, queries=150, database=250, seed=0)
    assert in_group(x @ some) > 0.98
    again = neighbor_whitening(x, 8, 0.01, 3, queries=150, database=250, seed=0)
    assert torch.equal(some, again)


def test_principal_directions_are_those_of_the_largest_second_moment() -> None:
    x = rows(500)
    directions = principal_directions(x, 2, seed=0)
    assert directions.shape == (6, 2)
    kept = (x @ directions).square().sum()
    torch.testing.assert_close(kept, torch.linalg.eigvalsh(x.T @ x)[-2:].sum(), rtol=1e-4, atol=0)
    assert torch.equal(x @ principal_directions(x, 6, seed=0), x)
