"""Spherical k-means on tensors, on CPU or GPU, in chunks that fit memory at a million rows and thousands of centers."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.errors import ConfigError

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**28
"""Largest similarity matrix held at once."""
SEEDING_ROWS_A_CENTER = 64
"""Rows per center that k-means++ looks at; seeding on more costs much and gains nothing."""


@dataclass(frozen=True)
class KMeans:
    """Result of :func:`spherical_kmeans`."""

    centers: Tensor
    """[k, d] float32, unit rows."""
    labels: Tensor
    """[N] int64."""
    objective: float
    """Mean cosine of a row to its center."""
    iterations: int
    converged: bool


def spherical_kmeans(
    x: Tensor, k: int, *, seed: int, restarts: int = 1, max_iterations: int = 100, tolerance: float = 1e-5
) -> KMeans:
    """Cluster unit rows by cosine (Dhillon & Modha 2001), seeded by k-means++ (Arthur & Vassilvitskii 2007).

    `x` [N, d] float32 with unit rows; the best of `restarts` runs by mean cosine. A center that loses all its rows is moved
    to the row that fits its own center worst; with fewer distinct rows than `k`, some centers coincide and stay empty.
    Deterministic in `seed` on one device. Raises :class:`ConfigError` for k > N.
    """
    if k > len(x):
        raise ConfigError(
            f"clusters: k-means into {k} clusters needs at least {k} images, there are {len(x)}; lower `clusters`"
        )
    runs = [_one_run(x, k, seed * 1_000_003 + restart, max_iterations, tolerance) for restart in range(restarts)]
    best = max(runs, key=lambda run: run.objective)
    if not best.converged:
        log.warning("k-means: not converged after %d iterations (mean cosine %.4f)", best.iterations, best.objective)
    return best


def nearest_center(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """For rows [N, d], cosine to the nearest of the centers [k, d] and its index, each [N]; chunked."""
    rows = max(1, CHUNK_BYTES // (4 * len(centers)))
    parts = [(chunk @ centers.T).max(dim=1) for chunk in torch.split(x, rows)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _one_run(x: Tensor, k: int, seed: int, max_iterations: int, tolerance: float) -> KMeans:
    generator = torch.Generator().manual_seed(seed % 2**63)
    centers = _plus_plus(x, k, generator)
    before = -2.0
    for iteration in range(1, max_iterations + 1):
        cosine, labels = nearest_center(x, centers)
        objective = float(cosine.double().mean())
        if objective - before <= tolerance * abs(objective):
            return KMeans(centers, labels, objective, iteration, True)
        before = objective
        centers = _update(x, labels, cosine, k)
    cosine, labels = nearest_center(x, centers)
    return KMeans(centers, labels, float(cosine.double().mean()), max_iterations, False)


def _update(x: Tensor, labels: Tensor, cosine: Tensor, k: int) -> Tensor:
    sums = torch.zeros(k, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, labels, x)
    empty = torch.bincount(labels, minlength=k) == 0
    if empty.any():
        worst = cosine.topk(int(empty.sum()), largest=False).indices
        sums[empty] = x[worst]
    return normalize(sums, dim=1)


def _plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates drawn by squared distance, the one that lowers the total most."""
    sample = min(len(x), max(k, SEEDING_ROWS_A_CENTER * k))
    rows = x if sample == len(x) else x[torch.randperm(len(x), generator=generator)[:sample].to(x.device)]
    candidates = 2 + k.bit_length() // 2
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    # 1 − cosine is half the squared Euclidean distance of unit rows.
    distance = (1 - rows @ rows[chosen[0]]).clamp_min_(0)
    for _ in range(1, k):
        cumulative = distance.double().cumsum(0)
        total = float(cumulative[-1])
        if total <= 1e-9:
            # Fewer distinct rows than centers: any row will do.
            chosen.append(int(torch.randint(len(rows), (1,), generator=generator)))
            continue
        draws = torch.rand(candidates, generator=generator, dtype=torch.float64).to(x.device) * total
        drawn = torch.searchsorted(cumulative, draws).clamp_max_(len(rows) - 1)
        reduced = torch.minimum(distance, (1 - rows[drawn] @ rows.T).clamp_min_(0))
        best = int(reduced.sum(dim=1).argmin())
        chosen.append(int(drawn[best]))
        distance = reduced[best]
    return rows[chosen].clone()
