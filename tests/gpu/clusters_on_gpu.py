"""Check that k-means, neighbors and the consensus agree on GPU and CPU, and measure them on the GPU alone with more rows."""

from __future__ import annotations

import torch
from sklearn.metrics import adjusted_rand_score
from table import Table, peak_gib, timed
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering.kmeans import kmeans
from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.config import MethodConfig
from raycluster.methods import registry
from raycluster.methods.base import FittedMethod, TrainingData

CLUSTERS, NEIGHBORS = 20, 50
RESTARTS = 20
"""Enough restarts that the best one finds all clusters, however sums are rounded."""


def made_up(n: int, dim: int, n_nouns: int = 1000, clusters: int = CLUSTERS) -> tuple[TrainingData, Tensor]:
    """Rows in clusters around nouns, with noise that is stronger in some directions, and the cluster of each row."""
    generator = torch.Generator().manual_seed(0)
    nouns = normalize(torch.randn(n_nouns, dim, generator=generator), dim=1)
    labels = torch.randint(0, clusters, (n,), generator=generator)
    spread = torch.linspace(0.6, 0.1, dim) / dim**0.5
    images = (nouns[labels] + torch.randn(n, dim, generator=generator) * spread).half()
    return TrainingData(torch.arange(n), images, vocabulary=nouns), labels


def on(data: TrainingData, device: str) -> TrainingData:
    """The same data on a device."""
    assert data.vocabulary is not None
    return TrainingData(data.row_ids.to(device), data.images.to(device), vocabulary=data.vocabulary.to(device))


def check_clusters(table: Table, device: str, small: bool, _: bool) -> None:
    """Add the rows of k-means, neighbors and the consensus to the table."""
    dim = 32 if small else 512
    data, truth = made_up(1000 if small else 20_000, dim)
    n = len(truth)
    found, expected = _all(on(data, device), device), _all(data, "cpu")
    for name in ("kmeans", "consensus"):
        same = adjusted_rand_score(expected[name][0].cpu(), found[name][0].cpu())
        table.add(f"{name}, {n} × {dim}: ARI of {device} to cpu", same, at_least=0.99)
    shared = _overlap(found["neighbors"][0].cpu(), expected["neighbors"][0].cpu())
    table.add(f"neighbors, {n} × {dim}: shared by {device} and cpu", shared, at_least=0.99)
    for name, (_result, seconds) in expected.items():
        table.add(f"{name}, {n} × {dim}: cpu, {torch.get_num_threads()} threads", seconds, "s")
        table.add(f"{name}, {n} × {dim}: {device}", found[name][1], "s")
    many, truth = made_up(1500 if small else 200_000, dim)
    peak_gib(device)
    for name, (result, seconds) in _all(on(many, device), device).items():
        table.add(f"{name}, {len(truth)} × {dim}: {device}", seconds, "s")
        if name != "neighbors":
            table.add(
                f"{name}, {len(truth)} × {dim}: ARI to the truth",
                adjusted_rand_score(truth, result.cpu()),
                at_least=0.95,
            )
    table.add(f"all three, {len(truth)} × {dim}: peak memory", peak_gib(device), "GiB")


def _all(data: TrainingData, device: str) -> dict[str, tuple[Tensor, float]]:
    """Results and seconds. The first calls on a GPU load its libraries, so smaller calls come before."""
    nearest_neighbors(data.images[:500], 5)
    kmeans(data.images[:500], 5, seed=0)
    return {
        "kmeans": timed(lambda: kmeans(data.images, CLUSTERS, seed=0, restarts=RESTARTS).labels, device),
        "neighbors": timed(lambda: nearest_neighbors(data.images, NEIGHBORS), device),
        "consensus": timed(lambda: _consensus(data, device), device),
    }


def _consensus(data: TrainingData, device: str) -> Tensor:
    method = registry.build(MethodConfig(name="consensus"), data.images.shape[1], CLUSTERS, len(data.images), seed=0)
    assert isinstance(method, FittedMethod)
    method.to(device).fit(data)
    return method.predict(data.images).argmax(dim=1)


def _overlap(a: Tensor, b: Tensor) -> float:
    """The mean share of a row's neighbors that are in both."""
    return float((a.unsqueeze(2) == b.unsqueeze(1)).any(dim=2).double().mean())
